"""VM.receive and VM.migrate of the upstream's VMs."""

from __future__ import annotations

from ..errors import OperationNotAllowed
from ..xenapi.calls import CallContext
from .client import UpstreamClient


class UpstreamMigrationCalls:
    """Each acts by the upstream's calls, with the session of who called."""

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client

    async def VM_receive(self, call: CallContext, sr: str, options: dict[str, str]) -> list[str]:
        label = await self._client.call("SR.get_name_label", call.session, sr)
        raise OperationNotAllowed(f"The SR {label!s:.100} belongs to the toolstack; VMs are not received into it yet.")

    async def VM_migrate(
        self, call: CallContext, vm: str, uris: list[str], vdi_sr_map: dict[str, str], options: dict[str, str]
    ) -> str:
        label = await self._client.call("VM.get_name_label", call.session, vm)
        raise OperationNotAllowed(f"The VM {label!s:.100} belongs to the toolstack; its VMs are not moved yet.")
