"""The kernel's NBD client by generic netlink (include/uapi/linux/nbd-netlink.h): a datapath's export as /dev/nbdN.

A device made so waits for its server to come back, for as long as it is told to, with all requests kept; one of
nbd-client's in its older way fails them. Everything here blocks for moments.
"""

from __future__ import annotations

import os
import socket
import struct

_GENERIC, _CONTROL = 16, 16
_REQUEST, _ACK = 1, 4
_ERROR, _DONE = 2, 3
_GET_FAMILY, _FAMILY_ID, _FAMILY_NAME, _GROUPS = 3, 1, 2, 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK_SIZE, _SERVER_FLAGS, _SOCKETS, _DEAD_CONNECTION, _IDENTIFIER = 1, 2, 3, 5, 7, 8, 10
_SECONDS = 10.0


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _sockets(connection: socket.socket) -> bytes:
    return _attribute(_SOCKETS, _attribute(1, _attribute(1, struct.pack("=I", connection.fileno()))))


class KernelNBD:
    """A netlink socket. OSError when the kernel refuses, or has no NBD."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
        self._socket.settimeout(_SECONDS)
        try:
            self._socket.bind((0, 0))
            told = self._ask(_CONTROL, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0"))
            (self._family,) = struct.unpack("=H", told[_FAMILY_ID])
            self._groups = told.get(_GROUPS, b"")
        except OSError as failure:
            self._socket.close()
            if failure.errno == 2:
                raise OSError(2, "this host's kernel has no NBD (module nbd)") from failure
            raise

    def __enter__(self) -> KernelNBD:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def connect(self, connection: socket.socket, size: int, flags: int, patience: int, identifier: str) -> int:
        """A device of `size` bytes on a connection whose options are negotiated; N of its /dev/nbdN. `patience`:
        seconds for which its requests wait for a new connection; `identifier`: what sysfs calls its server."""
        answer = self._ask(
            self._family, _CONNECT,
            _attribute(_SIZE, struct.pack("=Q", size)) + _attribute(_BLOCK_SIZE, struct.pack("=Q", 512))
            + _attribute(_SERVER_FLAGS, struct.pack("=Q", flags))
            + _attribute(_DEAD_CONNECTION, struct.pack("=Q", patience))
            + _attribute(_IDENTIFIER, identifier.encode() + b"\0") + _sockets(connection),
        )  # fmt: skip
        (index,) = struct.unpack("=I", answer[_INDEX])
        return int(index)

    def reconnect(self, index: int, identifier: str, connection: socket.socket) -> bool:
        """Put a new connection in the place of one that broke; False if none has."""
        parts = _attribute(_INDEX, struct.pack("=I", index)) + _attribute(_IDENTIFIER, identifier.encode() + b"\0")
        try:
            self._ask(self._family, _RECONFIGURE, parts + _sockets(connection))
        except OSError as failure:
            if failure.errno == 28:  # ENOSPC: no place is free
                return False
            raise
        return True

    def disconnect(self, index: int) -> None:
        """The device has no server any more, and no content."""
        self._ask(self._family, _DISCONNECT, _attribute(_INDEX, struct.pack("=I", index)))

    def listen(self) -> socket.socket:
        """From now on this tells of each connection that breaks, and is asked nothing more: readable then."""
        for group in _attributes(self._groups).values():
            parts = _attributes(group)
            if parts[1].rstrip(b"\0") == b"nbd_mc_group":
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, struct.unpack("=I", parts[2])[0])
        self._socket.setblocking(False)
        return self._socket

    def _ask(self, family: int, command: int, parts: bytes) -> dict[int, bytes]:
        """Send one request; the attributes of its answer. OSError with what the kernel answered."""
        body = struct.pack("=BBH", command, 1, 0) + parts
        self._socket.send(struct.pack("=IHHII", 16 + len(body), family, _REQUEST | _ACK, 1, 0) + body)
        found: dict[int, bytes] = {}
        while True:
            data = self._socket.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _ERROR:
                    (code,) = struct.unpack_from("=i", data, 16)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                if kind != _DONE:
                    found.update(_attributes(data[20:length]))
                data = data[(length + 3) & ~3 :]
