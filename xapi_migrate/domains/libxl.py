"""libxl and xenstore by ctypes, as much of them as one domain's life needs. Everything blocks, and libxl takes SIGCHLD
of the whole process for itself: only processes made for it may load this (xen_call, xen_watch).

Structures are not laid out here, for they differ between Xen's versions: what goes in and comes out is libxl's own
JSON, by way of buffers that are larger than any of them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
from types import TracebackType
from typing import Any

LIVE = 2
"""LIBXL_SUSPEND_LIVE."""
_BUFFER = 1 << 16
_PAGE = 4096
_WARN = 7
_STREAM_VERSION = 2
_NO_DOMAIN = 0xFFFFFFFF


class XenError(Exception):
    """A call failed; what libxl has to say of it is on stderr."""


class _RestoreParameters(ctypes.Structure):
    """libxl_domain_restore_params, the same since Xen 4.7."""

    _fields_ = (
        ("checkpointed_stream", ctypes.c_int),
        ("stream_version", ctypes.c_uint32),
        ("colo_proxy_script", ctypes.c_char_p),
        ("userspace_colo_proxy", ctypes.c_int),
    )


def _library(name: str) -> Any:
    found = ctypes.util.find_library(name)
    if found is None:
        raise XenError(f"lib{name} is not on this host: is Xen's toolstack (libxl) installed?")
    return ctypes.CDLL(found, use_errno=True)


class Libxl:
    """A context of libxl. Each call raises XenError with what it was that failed."""

    def __init__(self) -> None:
        self._xl, tool_log, c = _library("xenlight"), _library("xentoollog"), ctypes.CDLL(None)
        c.fdopen.restype = ctypes.c_void_p
        tool_log.xtl_createlogger_stdiostream.restype = ctypes.c_void_p
        stderr = ctypes.c_void_p(c.fdopen(2, b"w"))
        logger = ctypes.c_void_p(tool_log.xtl_createlogger_stdiostream(stderr, _WARN, 0))
        self._context = ctypes.c_void_p()
        if self._xl.libxl_ctx_alloc(ctypes.byref(self._context), 0, 0, logger):
            raise XenError("libxl does not start: does this host run Xen, and is this process root?")
        self._xl.libxl_dominfo_to_json.restype = self._xl.libxl_physinfo_to_json.restype = ctypes.c_void_p

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._xl, name)(self._context, *arguments)
        if code:
            raise XenError(f"{name} answered {code}")

    # -- questions ----------------------------------------------------------------------------

    def domid(self, name: str) -> int | None:
        """The number of the domain with this name; None if there is none."""
        found = ctypes.c_uint32()
        code = self._xl.libxl_name_to_domid(self._context, name.encode(), ctypes.byref(found))
        return None if code else int(found.value)

    def info(self, domid: int) -> dict[str, Any] | None:
        """libxl_dominfo of a domain; None if it is gone."""
        buffer = ctypes.create_string_buffer(_BUFFER)
        self._xl.libxl_dominfo_init(buffer)
        if self._xl.libxl_domain_info(self._context, buffer, ctypes.c_uint32(domid)):
            return None
        text = self._xl.libxl_dominfo_to_json(self._context, buffer)
        info: dict[str, Any] = json.loads(ctypes.string_at(text))
        ctypes.CDLL(None).free(ctypes.c_void_p(text))
        self._xl.libxl_dominfo_dispose(buffer)
        return info

    def memory(self) -> tuple[int, int]:
        """Bytes of the whole machine, and those that no domain has or has been promised."""
        buffer = ctypes.create_string_buffer(_BUFFER)
        self._xl.libxl_physinfo_init(buffer)
        self._call("libxl_get_physinfo", buffer)
        text = self._xl.libxl_physinfo_to_json(self._context, buffer)
        told: dict[str, Any] = json.loads(ctypes.string_at(text))
        ctypes.CDLL(None).free(ctypes.c_void_p(text))
        self._xl.libxl_physinfo_dispose(buffer)
        free = told.get("free_pages", 0) - told.get("outstanding_pages", 0)
        return told["total_pages"] * _PAGE, max(0, free) * _PAGE

    # -- life ---------------------------------------------------------------------------------

    def _config(self, config: str) -> Any:
        buffer = ctypes.create_string_buffer(_BUFFER)
        self._xl.libxl_domain_config_init(buffer)
        self._call("libxl_domain_config_from_json", buffer, config.encode())
        return buffer

    def create(self, config: str) -> int:
        """Build a domain, which is paused then; its number."""
        domid = ctypes.c_uint32(_NO_DOMAIN)
        self._call("libxl_domain_create_new", self._config(config), ctypes.byref(domid), None, None)
        return int(domid.value)

    def restore(self, config: str, fd: int) -> int:
        """The same, with its memory and its processors' state from a stream."""
        domid, parameters = ctypes.c_uint32(_NO_DOMAIN), _RestoreParameters(0, _STREAM_VERSION, None, 0)
        arguments = (ctypes.byref(domid), fd, -1, ctypes.byref(parameters), None, None)
        self._call("libxl_domain_create_restore", self._config(config), *arguments)
        return int(domid.value)

    def suspend(self, domid: int, fd: int, live: bool) -> None:
        """Write its memory and its processors' state; it stands still at the end. One that fails early runs on."""
        self._call("libxl_domain_suspend", ctypes.c_uint32(domid), fd, LIVE if live else 0, None)

    def resume(self, domid: int) -> None:
        """After a suspend: let it go on as if there had been none."""
        self._call("libxl_domain_resume", ctypes.c_uint32(domid), 1, None)

    def pause(self, domid: int) -> None:
        self._call("libxl_domain_pause", ctypes.c_uint32(domid), None)

    def unpause(self, domid: int) -> None:
        self._call("libxl_domain_unpause", ctypes.c_uint32(domid), None)

    def shutdown(self, domid: int) -> None:
        """Ask its guest to switch off."""
        self._call("libxl_domain_shutdown", ctypes.c_uint32(domid), None)

    def destroy(self, domid: int) -> None:
        """End it; its devices are gone from this host afterwards."""
        self._call("libxl_domain_destroy", ctypes.c_uint32(domid), None)


class Xenstore:
    """A connection to xenstored."""

    def __init__(self) -> None:
        self._xs, self._c = _library("xenstore"), ctypes.CDLL(None)
        self._xs.xs_open.restype = self._xs.xs_read.restype = ctypes.c_void_p
        self._xs.xs_directory.restype = self._xs.xs_check_watch.restype = ctypes.POINTER(ctypes.c_char_p)
        handle = self._xs.xs_open(ctypes.c_ulong(0))
        if not handle:
            raise XenError("xenstored does not answer: does this host run Xen?")
        self._handle = ctypes.c_void_p(handle)

    def __enter__(self) -> Xenstore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._xs.xs_close(self._handle)

    def read(self, path: str) -> str | None:
        """A node's value; None if there is no such node."""
        length = ctypes.c_uint()
        found = self._xs.xs_read(self._handle, ctypes.c_uint32(0), path.encode(), ctypes.byref(length))
        if not found:
            return None
        value = ctypes.string_at(found, length.value).decode("utf-8", "replace")
        self._c.free(ctypes.c_void_p(found))
        return value

    def names(self) -> dict[str, int]:
        """Name -> number of all domains on this host."""
        count = ctypes.c_uint()
        entries = self._xs.xs_directory(self._handle, ctypes.c_uint32(0), b"/local/domain", ctypes.byref(count))
        numbers = [int(entries[index] or b"0") for index in range(count.value)] if entries else []
        self._c.free(entries)
        named = ((self.read(f"/local/domain/{number}/name"), number) for number in numbers)
        return {name: number for name, number in named if name}

    def watch(self, path: str) -> None:
        if not self._xs.xs_watch(self._handle, path.encode(), path.encode()):
            raise XenError(f"xenstore: {path} cannot be watched")

    def fileno(self) -> int:
        """Readable when something watched has happened: then call `seen`."""
        return int(self._xs.xs_fileno(self._handle))

    def seen(self) -> None:
        """Take in all that has happened to what is watched."""
        while event := self._xs.xs_check_watch(self._handle):
            self._c.free(event)
