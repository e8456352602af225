"""The API on a unix socket: who may open it is let in by log-in without a password, as by xapi's own.

Who that is says the socket's mode, so only a socket made here is trusted so; one of `listen` ("unix:...") is not.
"""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any, Protocol

from twisted.internet.interfaces import IListeningPort

from xapi_migrate.errors import InvalidValue
from xapi_migrate.processes.in_thread import in_thread

MODES = {"0600": 0o600, "0660": 0o660}
LONGEST = 107
"""Bytes of a unix socket's path."""
_ANSWER_SECONDS = 5.0


class Trusting(Protocol):
    """What serves a port; `trusted`: whoever connects is root on this host, or as good."""

    trusted: bool


async def listen_locally(reactor: Any, path: Path, mode: str, site: Trusting) -> IListeningPort:
    """Serve `site` at `path`, where an ended daemon may have left its socket. InvalidValue for a mode that is none of
    MODES or a path that is too long; OSError if something else is there, or another daemon answers."""
    if mode not in MODES:
        raise InvalidValue("api_socket_mode", mode)
    if len(bytes(path)) > LONGEST:
        raise InvalidValue("api_socket", f"{path} is longer than {LONGEST} bytes")
    await in_thread(remove_stale, path)
    site.trusted = True
    port: IListeningPort = reactor.listenUNIX(str(path), site, mode=MODES[mode])
    return port


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves any more; make its folder. OSError if it is no socket or is served. Blocks."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        folder.chmod(0o755)  # who may open the socket says its own mode
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(f"{path} is there already, and is no socket: the API cannot be served at it.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except TimeoutError:
            pass
    raise FileExistsError(f"Another daemon serves the API at {path}.")
