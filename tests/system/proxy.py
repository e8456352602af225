"""A TCP relay between two hosts that sees which requests pass, and can act or lose an answer at one of them."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

REQUEST = re.compile(rb"^(HEAD|GET|PUT|DELETE) /migrate/[A-Za-z0-9_-]{43}(/[a-z0-9/]*)? HTTP/1\.1\r\n", re.MULTILINE)


class Proxy:
    """Relays a loopback port to `target`. `requests` is every migration request seen, like "PUT /control".

    `before(request)` is called when one passes, before it is handed on. While `lose_answers_of` holds a request, its
    answer is thrown away and the connection cut, once for each time it is in the list. A request in `lose` never
    arrives, and its connection is cut. What `replace` names in an answer is exchanged for bytes of the same length.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self.lose_answers_of: list[str] = []
        self.lose: set[str] = set()
        self.replace: dict[bytes, bytes] = {}
        self._target = target
        self._down = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flowing.set()
        self.cut()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(10)

    def cut(self) -> None:
        """Break all connections; new ones are taken."""
        for one in list(self._sockets):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def take_down(self) -> None:
        """Break all connections, and new ones until `mend`."""
        self._down = True
        self.cut()

    def stall(self) -> None:
        """Nothing passes any more, and nothing breaks, until `mend`."""
        self._flowing.clear()

    def mend(self) -> None:
        """As before."""
        self._down = False
        self._flowing.set()

    def uris(self, uris: list[str]) -> list[str]:
        """The http ones of an offer, by way of this relay."""
        return [
            re.sub(r"^http://[^/]*/", f"http://127.0.0.1:{self.port}/", uri) for uri in uris if uri.startswith("http:")
        ]

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self._down:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, 5)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            self._sockets += [client, server]
            self._run(self._connection, client, server)

    def _connection(self, client: socket.socket, server: socket.socket) -> None:
        lost = threading.Event()
        back = threading.Thread(target=self._relay, args=(server, client, lost, False), daemon=True)
        back.start()
        self._relay(client, server, lost, True)
        back.join()
        for one in (client, server):
            self._sockets.remove(one)
            one.close()

    def _relay(self, source: socket.socket, sink: socket.socket, lost: threading.Event, looks: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flowing.wait()
                if looks:
                    self._look(data, lost)
                elif lost.is_set():
                    break
                else:
                    for old, new in self.replace.items():
                        data = data.replace(old, new)
                sink.sendall(data)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _look(self, data: bytes, lost: threading.Event) -> None:
        for match in REQUEST.finditer(data):
            request = f"{match[1].decode()} {(match[2] or b'').decode()}".strip()
            self.requests.append(request)
            self.before(request)
            if request in self.lose:
                raise OSError(f"{request} is lost")
            if request in self.lose_answers_of:
                self.lose_answers_of.remove(request)
                lost.set()
