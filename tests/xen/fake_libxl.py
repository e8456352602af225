"""The same as xapi_migrate/domains/libxl.py, asked of a FakeXen. It is loaded in processes that would load libxl."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

MAGIC = b"fake libxl stream"
_ANSWERS = os.environ.get("FAKE_XEN", "")


class XenError(Exception):
    """As the real one."""


def _ask(call: str, *arguments: Any) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(_ANSWERS)
        connection.sendall(json.dumps([call, *arguments]).encode() + b"\n")
        answer = json.loads(connection.makefile().readline())
    if "error" in answer:
        raise XenError(answer["error"])
    return answer["result"]


def _framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _read(fd: int) -> bytes:
    (length,) = struct.unpack(">I", _exactly(fd, 4))
    return _exactly(fd, length)


def _exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(fd, count - len(data))
        if not part:
            raise XenError("the stream ends too early")
        data += part
    return data


class Libxl:
    def domid(self, name: str) -> int | None:
        return _ask("domid", name)

    def info(self, domid: int) -> dict[str, Any] | None:
        return _ask("info", domid)

    def memory(self) -> tuple[int, int]:
        return 1 << 34, 1 << 33

    def create(self, config: str) -> int:
        return _ask("create", config)

    def restore(self, config: str, fd: int) -> int:
        domid = _ask("create", config)
        try:
            if _exactly(fd, len(MAGIC)) != MAGIC:
                raise XenError("this is no stream")
            _read(fd)
            _ask("load", domid, json.loads(_read(fd)))
        except BaseException:
            _ask("destroy", domid)
            raise
        return domid

    def suspend(self, domid: int, fd: int, live: bool) -> None:
        if not live:
            _ask("stop", domid)
        try:
            os.write(fd, MAGIC)
            memory = _framed(bytes(_ask("memory", domid)))
            while memory:
                memory = memory[os.write(fd, memory) :]
            state = _ask("stop", domid)
            os.write(fd, _framed(json.dumps(state).encode()))
        except OSError as failure:
            raise XenError("the stream cannot be written") from failure

    def resume(self, domid: int) -> None:
        _ask("resume", domid)

    def pause(self, domid: int) -> None:
        _ask("pause", domid)

    def unpause(self, domid: int) -> None:
        _ask("unpause", domid)

    def shutdown(self, domid: int) -> None:
        _ask("shutdown", domid)

    def destroy(self, domid: int) -> None:
        _ask("destroy", domid)


class Xenstore:
    def __enter__(self) -> Xenstore:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, path: str) -> str | None:
        return _ask("console", int(path.split("/")[3]))

    def names(self) -> dict[str, int]:
        return _ask("names")

    def watch(self, path: str) -> None:
        self._events = socket.socket(socket.AF_UNIX)
        self._events.connect(_ANSWERS)
        self._events.sendall(b'["watch"]\n')

    def fileno(self) -> int:
        return self._events.fileno()

    def seen(self) -> None:
        self._events.recv(1 << 16)
