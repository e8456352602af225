"""A TCP relay between two hosts that sees which requests pass, and can act or lose an answer at one of them."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.system.deliveries import Cutter, Deliveries, Line


class Proxy:
    """Relays a loopback port to `target`. `requests` is every migration request seen, like "PUT /control".

    `before(request)` is called when one passes, before it is handed on. While `lose_answers_of` holds a request, its
    answer is thrown away and the connection cut, once for each time it is in the list. A request in `lose` never
    arrives, and its connection is cut. What `replace` names in an answer is exchanged for bytes of the same length.
    `deliveries` delivers requests twice or late. `rate` bounds what a connection carries, in bytes per second.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self.lose_answers_of: list[str] = []
        self.lose: set[str] = set()
        self.replace: dict[bytes, bytes] = {}
        self.deliveries = Deliveries(target)
        self.rate: float | None = None
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
        self.deliveries.calm()
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
        line = Line()
        back = threading.Thread(target=self._answers, args=(server, client, line), daemon=True)
        back.start()
        self._requests(client, server, line)
        back.join()
        for one in (client, server):
            self._sockets.remove(one)
            one.close()

    def _requests(self, client: socket.socket, server: socket.socket, line: Line) -> None:
        cutter = Cutter()

        def handle(data: bytes) -> None:
            for name, part in cutter.cut(data):
                if name:
                    self._look(name, line)
                    self.deliveries.deliver(name, part, line, server.sendall)
                else:
                    server.sendall(part)

        self._relay(client, server, handle)

    def _answers(self, server: socket.socket, client: socket.socket, line: Line) -> None:
        def handle(data: bytes) -> None:
            line.answered()
            if line.loses:
                raise OSError("an answer is lost")
            for old, new in self.replace.items():
                data = data.replace(old, new)
            client.sendall(data)

        try:
            self._relay(server, client, handle)
        finally:
            line.answered()

    def _relay(self, source: socket.socket, sink: socket.socket, handle: Callable[[bytes], None]) -> None:
        try:
            while data := source.recv(1 << 16):
                self._flowing.wait()
                handle(data)
                if self.rate:
                    time.sleep(len(data) / self.rate)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _look(self, request: str, line: Line) -> None:
        self.requests.append(request)
        self.before(request)
        if request in self.lose:
            raise OSError(f"{request} is lost")
        if request in self.lose_answers_of:
            self.lose_answers_of.remove(request)
            line.loses = True
