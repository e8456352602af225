"""Options of the sockets that memory streams go over."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

PAIR_BUFFER = 1 << 20
"""Bytes that a local pair holds, each way."""

AT_ONCE = 256 << 10
"""Bytes that the reactor reads at once from what a memory stream goes through. With twisted's 64 KiB a carried
stream is less than half as fast."""

_BYTES_RECEIVED = struct.Struct("=128xQ")  # tcpi_bytes_received in struct tcp_info of linux/tcp.h


def tcp_socket(transport: Any) -> socket.socket | None:
    """The socket under a Twisted transport, under its TLS if there is any; None if there is none."""
    while not isinstance(handle := transport.getHandle(), socket.socket):
        transport = getattr(transport, "transport", None)
        if transport is None or not hasattr(transport, "getHandle"):
            return None
    return handle


def read_more(transport: Any) -> None:
    """Let the reactor read AT_ONCE bytes at a time from a transport, or from that under its TLS."""
    while transport is not None:
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = AT_ONCE
        transport = getattr(transport, "transport", None)


def expect_life(sock: socket.socket | None, silence: int) -> None:
    """Let the kernel break the connection when the other host has been silent for so many seconds, whether bytes are
    on their way (user time-out) or not (keepalive). Nothing happens for what is no TCP socket."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence * 1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, silence // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, silence - silence // 2)


def notice_death(sock: socket.socket | None) -> None:
    """Let the kernel break a connection whose other host has gone, within about a minute. One that only reads slowly
    keeps it."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bytes_received(sock: socket.socket) -> int:
    """All bytes that the kernel has received on a TCP connection, whoever reads them."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else 0


def break_off(sock: socket.socket | None) -> None:
    """End the connection for everyone who holds a duplicate of the socket, the hypervisor too."""
    if sock is None:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended already


def plain_address(host: str) -> str:
    """An address literal as others know it: a socket that listens on :: calls 10.0.0.1 ::ffff:10.0.0.1."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or host)


def local_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, for a hypervisor whose stream the daemon carries. Both are blocking."""
    pair = socket.socketpair()
    for one in pair:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BUFFER)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PAIR_BUFFER)
    return pair
