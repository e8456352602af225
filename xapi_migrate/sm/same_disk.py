"""The same-disk test (step 3.3): does the LUN at the other end show the very disk that is to be copied?

A LUN names itself in its vital product data: the unit serial is a VDI's uuid, the id that of the VDI (a fresh
disk to copy into) or of the SR (a disk that was found, offered read-only). An encrypted disk has no such data, and is
named in its URL. Names can lie, storage may be cloned, so the proof is a nonce that the other host left in the SR.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, threads

from xapi_migrate.errors import CopyFailed
from xapi_migrate.processes.child import spawn
from xapi_migrate.sm.addresses import LunAddress, NBDAddress, read_address
from xapi_migrate.sm.interfaces import TargetUrl
from xapi_migrate.sm.timeouts import SMTimeouts

_SERIAL = re.compile(r"Unit Serial Number:\[([^\]]*)\]")
_DESIGNATOR = re.compile(r"Designator:\[([^\]]*)\]")


@attrs.frozen
class Identity:
    """What a LUN says it is."""

    serial: str
    ids: tuple[str, ...]


async def read_identity(reactor: Any, folder: Path, vdi: str, url: TargetUrl, timeouts: SMTimeouts) -> Identity:
    """Ask the LUN in a child process that works in `folder`. CopyFailed when it cannot be asked, ValueError when it is
    no such URL."""
    address = read_address(url.url)
    if isinstance(address, NBDAddress):
        return Identity(address.serial, (address.id,))
    folder /= "identity"
    try:
        serial = _SERIAL.search(await _inquire(reactor, folder / "serial", vdi, address, url, 0x80, timeouts))
        designators = _DESIGNATOR.findall(await _inquire(reactor, folder / "ids", vdi, address, url, 0x83, timeouts))
    finally:
        await threads.deferToThread(shutil.rmtree, folder, ignore_errors=True)
    return Identity(serial[1].strip() if serial else "", tuple(text.strip() for text in designators))


async def _inquire(
    reactor: Any, folder: Path, vdi: str, lun: LunAddress, url: TargetUrl, page: int, timeouts: SMTimeouts
) -> str:
    secret = {"LIBISCSI_CHAP_USERNAME": url.username, "LIBISCSI_CHAP_PASSWORD": url.password}
    argv = ["iscsi-inq", "-e", "1", "-c", str(page), f"iscsi://{lun.portal}/{lun.iqn}/{lun.lun}"]
    child = await spawn(reactor, folder, argv, env={**os.environ, "LC_ALL": "C", **secret})
    ended = child.ended().addTimeout(timeouts.identity, reactor)
    try:
        await ended
    except defer.TimeoutError as failure:
        raise CopyFailed(vdi, f"the LUN at {lun.portal} did not answer for {timeouts.identity:g} s") from failure
    finally:
        await child.kill()
    answer = (folder / "stdout").read_text("utf-8", "replace")
    if "Designator" not in answer and "Unit Serial Number" not in answer:
        raise CopyFailed(vdi, f"the LUN at {lun.portal} cannot be reached: {child.errors() or 'no answer'}")
    return answer
