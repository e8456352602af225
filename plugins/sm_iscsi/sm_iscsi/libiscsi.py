"""A few calls of libiscsi (the library that QEMU opens LUNs with), by ctypes. They block."""

from __future__ import annotations

import ctypes as c
from typing import Any

BLOCK = 512
CONFLICT = 0x18
"""SCSI status: another initiator has reserved the LUN."""
_CHECK_CONDITION = 0x02
_UNIT_ATTENTION = 6
_NORMAL = 2
_TRIES = 5
_AT_ONCE = 128 * 1024


class LunError(Exception):
    """A command failed."""


class Conflict(LunError):
    """Another host has reserved the LUN."""


class _Sense(c.Structure):
    _fields_ = (
        ("error_type", c.c_ubyte),
        ("key", c.c_int),
        ("ascq", c.c_int),
        ("flags", c.c_ubyte),
        ("bit", c.c_ubyte),
        ("field", c.c_uint16),
    )


class _Data(c.Structure):
    _fields_ = (("size", c.c_int), ("data", c.POINTER(c.c_ubyte)))


class _Task(c.Structure):
    """As libiscsi 1.18 to 1.20 have it, up to what is read here."""

    _fields_ = (
        ("status", c.c_int),
        ("cdb_size", c.c_int),
        ("direction", c.c_int),
        ("expected", c.c_int),
        ("cdb", c.c_ubyte * 16),
        ("residual_status", c.c_int),
        ("residual", c.c_size_t),
        ("sense", _Sense),
        ("datain", _Data),
    )


_lib = c.CDLL("libiscsi.so.7")
for _name in ("read16", "write16", "readcapacity16", "reserve6", "release6", "synchronizecache10"):
    getattr(_lib, f"iscsi_{_name}_sync").restype = c.POINTER(_Task)
_lib.iscsi_create_context.restype = c.c_void_p
_lib.iscsi_get_error.restype = c.c_char_p
_lib.scsi_free_scsi_task.argtypes = [c.c_void_p]


class Session:
    """A session with a target; each command gives up after `timeout` seconds. LunError."""

    def __init__(
        self, portal: str, target: str, initiator: str, username: str = "", password: str = "", timeout: int = 10
    ) -> None:
        self._context = c.c_void_p(_lib.iscsi_create_context(initiator.encode()))
        _lib.iscsi_set_targetname(self._context, target.encode())
        _lib.iscsi_set_session_type(self._context, _NORMAL)
        _lib.iscsi_set_timeout(self._context, timeout)
        _lib.iscsi_set_noautoreconnect(self._context, 1)
        if username:
            _lib.iscsi_set_initiator_username_pwd(self._context, username.encode(), password.encode())
        if _lib.iscsi_connect_sync(self._context, portal.encode()) or _lib.iscsi_login_sync(self._context):
            raise LunError(f"no session with {target} at {portal}: {self._error()}")

    def capacity(self, lun: int) -> int:
        """Bytes."""
        answer = self._do("readcapacity16", lun)
        return (int.from_bytes(answer[:8], "big") + 1) * int.from_bytes(answer[8:12], "big")

    def read(self, lun: int, offset: int, length: int) -> bytes:
        """Whole blocks."""
        places = [c.c_uint64(at // BLOCK) for at in range(offset, offset + length, _AT_ONCE)]
        return b"".join(self._do("read16", lun, lba, _AT_ONCE, BLOCK, 0, 0, 0, 0, 0) for lba in places)[:length]

    def write(self, lun: int, offset: int, data: bytes) -> None:
        """Whole blocks; on the target's disk when this returns."""
        for at in range(0, len(data), _AT_ONCE):
            part = data[at : at + _AT_ONCE]
            lba = c.c_uint64((offset + at) // BLOCK)
            self._do("write16", lun, lba, c.create_string_buffer(part, len(part)), len(part), BLOCK, 0, 0, 0, 0, 0)
        self._do("synchronizecache10", lun, 0, 0, 0, 0)

    def reserve(self, lun: int) -> None:
        """Keep all other initiators from the LUN, until `release` or the end of this session. Conflict."""
        self._do("reserve6", lun)

    def release(self, lun: int) -> None:
        self._do("release6", lun)

    def close(self) -> None:
        _lib.iscsi_logout_sync(self._context)
        _lib.iscsi_destroy_context(self._context)

    def _do(self, command: str, lun: int, *arguments: Any) -> bytes:
        call = getattr(_lib, f"iscsi_{command}_sync")
        for _ in range(_TRIES):
            task = call(self._context, lun, *arguments)
            if not task:
                raise LunError(f"{command} of LUN {lun}: {self._error()}")
            try:
                status, sense = task.contents.status, task.contents.sense
                if status == 0:
                    found = task.contents.datain
                    return bytes(c.string_at(found.data, found.size)) if found.size else b""
                if status == CONFLICT:
                    raise Conflict(f"LUN {lun} is reserved by another host")
                if not (status == _CHECK_CONDITION and sense.key == _UNIT_ATTENTION):
                    raise LunError(f"{command} of LUN {lun}: {self._error()}")
            finally:
                _lib.scsi_free_scsi_task(task)
        raise LunError(f"{command} of LUN {lun}: {self._error()}")

    def _error(self) -> str:
        return str((_lib.iscsi_get_error(self._context) or b"no answer").decode("utf-8", "replace"))
