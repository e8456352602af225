"""The disks of a VM that is sent, plugged into the upstream's control domain: its storage layer counts them as in use.

Then no other VM can have one for writing, on this host or another of the pool, and VDI.destroy and VDI.resize are
refused. It is for reading only: xapi's tapdisk writes to a VHD that it opens for writing, and this host reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import RemoteError
from .client import UpstreamClient
from .reading import PLUG, control_domain, record_of

SECONDS = 300.0
"""How long a plug may take: storage may be busy."""

DETACHED = ("DEVICE_ALREADY_DETACHED",)


class Plugs:
    def __init__(self, client: UpstreamClient) -> None:
        self._client = client

    async def plug(self, mark: str, session: str, vdis: Sequence[str]) -> None:
        """`mark` is what they are found by. Nothing is done where the upstream has no control domain, as another daemon
        of this kind. RemoteError with the upstream's words, UpstreamSilent; what was plugged stays until `unplug`."""
        domain = await control_domain(self._client, session)
        for vdi in vdis if domain else ():
            fields: dict[str, Any] = {
                "VM": domain, "VDI": vdi, "userdevice": "autodetect", "mode": "RO", "type": "Disk", "bootable": False,
                "unpluggable": True, "empty": False, "other_config": {PLUG: mark}, "qos_algorithm_type": "",
                "qos_algorithm_params": {},
            }  # fmt: skip
            vbd = await self._client.call("VBD.create", session, fields)
            await self._client.call("VBD.plug", session, vbd, seconds=SECONDS)

    async def unplug(self, mark: str, session: str, vdis: Sequence[str]) -> None:
        """Whatever was plugged with this mark: it is looked for, so that no answer is needed. RemoteError,
        UpstreamSilent."""
        for vdi in vdis:
            vbds = await self._client.tolerant("VDI.get_VBDs", session, vdi)
            for vbd in vbds if isinstance(vbds, list) else ():
                if await self._is_mine(mark, session, vbd):
                    await self._client.tolerant("VBD.unplug", session, vbd, also=DETACHED, seconds=SECONDS)
                    await self._client.tolerant("VBD.destroy", session, vbd)

    async def _is_mine(self, mark: str, session: str, vbd: str) -> bool:
        try:
            record = await record_of(self._client, session, "VBD", vbd)
        except RemoteError as refusal:
            if refusal.failure()[0] == "HANDLE_INVALID":
                return False
            raise
        return (record.get("other_config") or {}).get(PLUG) == mark
