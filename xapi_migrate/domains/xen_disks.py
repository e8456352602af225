"""Attached VDIs as block devices of this host, for blkback: /dev/nbdN, one for each disk of a domain.

Sysfs says whose a device is (its `backend`), so that it is found again whatever happened to the one who made it.
Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

from xapi_migrate.domains.interfaces import DomainDisk
from xapi_migrate.domains.xen_netlink import KernelNBD

PATIENCE = 7 * 24 * 3600
"""Seconds for which a domain's disk waits for its datapath to come back."""
_READ_ONLY = 2
_HANDSHAKE = 10.0
_QUIET, _IDLE = 0.005, 3
"""blkback has nothing under way when so many looks, so many seconds apart, have found nothing."""
_OPT_GO, _REP_ACK, _REP_INFO = 7, 1, 3
_OPTION_MAGIC, _REPLY_MAGIC = b"IHAVEOPT", 0x3E889045565A9


def identifier(domain_id: str, disk: DomainDisk) -> str:
    return f"xapi_migrate/{domain_id}/{disk.device}"


def device(domain_id: str, disk: DomainDisk) -> int | None:
    """N of the disk's /dev/nbdN; None if it has none."""
    wanted = identifier(domain_id, disk)
    for backend in Path("/sys/block").glob("nbd*/backend"):
        try:
            if backend.read_text().strip() == wanted:
                return int(backend.parent.name.removeprefix("nbd"))
        except OSError:
            continue  # let go of meanwhile
    return None


def _negotiated(disk: DomainDisk) -> tuple[socket.socket, int, int]:
    """A connection to the disk's export, its size in bytes and its transmission flags. OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_HANDSHAKE)
        folder, name = os.path.split(disk.socket_path)
        at = os.open(folder, os.O_PATH | os.O_DIRECTORY)  # the path may be longer than a socket's name can be
        try:
            connection.connect(f"/proc/self/fd/{at}/{name}")
        finally:
            os.close(at)
        size, flags = _go(connection, disk.export.encode())
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return connection, size, flags


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the datapath closed the connection")
        data += part
    return data


def _go(connection: socket.socket, export: bytes) -> tuple[int, int]:
    """NBD's fixed newstyle handshake with NBD_OPT_GO: the export's size and flags."""
    greeting = _exactly(connection, 18)
    if greeting[:16] != b"NBDMAGIC" + _OPTION_MAGIC:
        raise ConnectionError("what answers is no NBD server")
    option = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
    connection.sendall(struct.pack(">I", 3) + _OPTION_MAGIC + struct.pack(">II", _OPT_GO, len(option)) + option)
    size = flags = -1
    while True:
        magic, _, kind, length = struct.unpack(">QIII", _exactly(connection, 20))
        data = _exactly(connection, length)
        if magic != _REPLY_MAGIC or kind & 0x80000000:
            raise ConnectionError(f"the datapath has no export {export.decode()} for it")
        if kind == _REP_INFO and data[:2] == b"\0\0":
            size, flags = struct.unpack(">QH", data[2:12])
        if kind == _REP_ACK and size >= 0:
            return size, flags


def attach(domain_id: str, disk: DomainDisk) -> int:
    """Make the disk's device; N of its /dev/nbdN. OSError."""
    connection, size, flags = _negotiated(disk)
    with connection, KernelNBD() as kernel:
        if disk.read_only:
            flags |= _READ_ONLY
        return kernel.connect(connection, size, flags, PATIENCE, identifier(domain_id, disk))


def mend(domain_id: str, disk: DomainDisk) -> None:
    """If the device lost its datapath, give it the one that is there now. OSError if there is none."""
    index = device(domain_id, disk)
    if index is None:
        raise OSError(19, "its block device is gone")
    connection, _, _ = _negotiated(disk)
    with connection, KernelNBD() as kernel:
        kernel.reconnect(index, identifier(domain_id, disk), connection)


def detach(domain_id: str, disk: DomainDisk) -> None:
    """Take the disk's device away, if there is one. Nothing may use it any more."""
    index = device(domain_id, disk)
    if index is not None:
        with KernelNBD() as kernel:
            kernel.disconnect(index)


def settle(domain_id: str, disk: DomainDisk, limit: float) -> None:
    """Of a domain that stands still: wait until no request of the disk is under way, then flush it. OSError, also when
    requests are there after `limit` seconds; the flush itself takes as long as the datapath is away."""
    index = device(domain_id, disk)
    if index is None:
        raise OSError(19, "its block device is gone")
    idle, deadline = 0, time.monotonic() + limit
    while idle < _IDLE:
        busy = any(int(count) for count in Path(f"/sys/block/nbd{index}/inflight").read_text().split())
        if busy and time.monotonic() > deadline:
            raise OSError(5, f"requests of its disk {disk.device} do not end")
        idle = 0 if busy else idle + 1
        time.sleep(_QUIET)
    at = os.open(f"/dev/nbd{index}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(at)
    finally:
        os.close(at)
