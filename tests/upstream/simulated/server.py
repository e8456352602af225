"""The stand-in's ports: HTTP with kept connections, a thread for each, streams, tunnels."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .database import Database
from .records import Failure
from .spelling import JsonCall, XmlCall

BLOCK = bytes(range(256)) * 256


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """No log."""

    def address_string(self) -> str:
        return "local"

    def setup(self) -> None:
        if self.server.local:
            self.disable_nagle_algorithm = False
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        except OSError:
            pass
        self.server.connections.discard(self.connection)

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the other side has gone

    def _answer(self, body: bytes, content_type: str, status: int = 200, **more: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-cache, no-store")
        for name, one in more.items():
            self.send_header(name.replace("_", "-"), one)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append(body)
        if self.server.spoil is not None:
            self.connection.sendall(self.server.spoil)
            self.close_connection = True
            return
        call = (JsonCall if urlsplit(self.path).path.startswith("/json") else XmlCall)(body)
        try:
            answer = call.success(self.server.database.call(call.method, call.params, self.server.local))
        except Failure as failure:
            answer = call.failure(failure.description)
        self._answer(answer, call.content_type, Access_Control_Allow_Origin="*")

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        wish = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path == "/export":
            self._export(int(wish["size"]), wish.get("framing", "close"))
        elif parts.path == "/redirect":
            self._answer(b"", "text/html", 302, Location="https://another.host/export?x=1")
        elif parts.path == "/console" and self.headers.get("Upgrade", "").lower() == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self._echo()
        else:
            self._answer(b"<html><body>404</body></html>", "text/html", 404)

    def _export(self, size: int, framing: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/octet-stream")
        if framing == "length":
            self.send_header("content-length", str(size))
        elif framing == "chunked":
            self.send_header("transfer-encoding", "chunked")
        else:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.flush()
        left = size
        while left:
            piece = BLOCK[: min(left, len(BLOCK))]
            if framing == "chunked":
                self.connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            else:
                self.connection.sendall(piece)
            left -= len(piece)
            self.server.sent += len(piece)
        if framing == "chunked":
            self.connection.sendall(b"0\r\n\r\n")

    def do_PUT(self) -> None:
        if urlsplit(self.path).path == "/import_metadata":
            self._import_metadata()
            return
        digest, size = hashlib.sha256(), 0
        for piece in self._pieces():
            digest.update(piece)
            size += len(piece)
            self.server.received += len(piece)
            self.server.slow.wait(30)
        self._answer(f"{size} {digest.hexdigest()}".encode(), "text/plain")

    def _import_metadata(self) -> None:
        """200 comes before the body is read; nothing of the answer says how it went."""
        wish = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        wish |= {name: one.value for name, one in SimpleCookie(self.headers.get("cookie", "")).items()}
        database = self.server.database
        if wish.get("session_id") not in database.records["session"]:
            self._answer(b"<html><body>401</body></html>", "text/html", 401)
            return
        self.close_connection = True
        task = wish.get("task_id") or database.task_create("VM.metadata_import", "")
        self.send_response(200)
        self.send_header("content-type", "application/octet-stream")
        self.send_header("connection", "close")
        self.send_header("task-id", task)
        self.end_headers()
        self.wfile.flush()
        archive = b"".join(self._pieces())
        self.server.before_import()
        database.run_import(
            archive, wish["session_id"], task, wish.get("restore") == "true", wish.get("dry_run") == "true"
        )

    def _pieces(self) -> Any:
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers["content-length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            if not piece:
                return
            left -= len(piece)
            yield piece

    def do_CONNECT(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nCache-Control: no-cache, no-store\r\n\r\n")
        self._echo()

    def _echo(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        while piece := self.rfile.read1(1 << 16):
            self.connection.sendall(piece.upper())


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 200

    def __init__(self, database: Database, address: Any, local: bool) -> None:
        self.address_family = socket.AF_UNIX if local else socket.AF_INET
        self.database = database
        self.local = local
        self.connections: set[socket.socket] = set()
        self.bodies: list[bytes] = []
        self.spoil: bytes | None = None
        self.sent = self.received = 0
        self.before_import: Callable[[], None] = lambda: None
        self.slow = threading.Event()
        self.slow.set()
        super().__init__(address, _Request)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes is none."""


class SimulatedXapi:
    """Use with `with`. `path`: at a unix socket, where everybody is root; `tls`: PEM files of certificate and key. The
    database outlives `restart`."""

    def __init__(
        self, users: dict[str, tuple[str, str]], path: Path | None = None, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.database = Database(users)
        self._path = path
        self._tls = tls
        self.port = 0
        self._dying = threading.Thread(target=lambda: None)
        self._dying.start()
        self.server: _Server

    def __enter__(self) -> SimulatedXapi:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def upstream(self) -> str:
        """As the configuration names it."""
        return f"unix:{self._path}" if self._path else f"http{'s' * bool(self._tls)}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.database.stopping = False
        self._dying.join(10)
        address: Any = str(self._path) if self._path else ("127.0.0.1", self.port)
        self.server = _Server(self.database, address, self._path is not None)
        if self._path is None:
            self.port = self.server.server_address[1]
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        run: Callable[[], None] = self.server.serve_forever
        self._thread = threading.Thread(target=run, args=(0.05,), daemon=True)  # type: ignore[call-arg]
        self._thread.start()

    def die(self) -> None:
        """All connections end, and nobody listens; nothing is waited for. `start` it again before `stop`."""
        server = self.server
        server.socket.close()
        for connection in list(server.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self._dying = threading.Thread(target=server.shutdown, daemon=True)
        self._dying.start()

    def stop(self) -> None:
        """All connections end."""
        with self.database.changed:
            self.database.stopping = True
            self.database.changed.notify_all()
        self.server.slow.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(10)
        for connection in list(self.server.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if self._path is not None:
            self._path.unlink(missing_ok=True)
