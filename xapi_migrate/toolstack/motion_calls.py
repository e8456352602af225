"""VDI.pool_migrate."""

from __future__ import annotations

from xapi_migrate.errors import InvalidValue
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.motion import StorageMotion
from xapi_migrate.xenapi.calls import CallContext


class MotionCalls:
    def __init__(self, records: Records, motion: StorageMotion) -> None:
        self._records = records
        self._motion = motion

    async def VDI_pool_migrate(self, call: CallContext, vdi: str, sr: str, options: dict[str, str]) -> str:
        """The format is that of the SR. Options of other servers are without effect, but for one that names a format
        which the VDI would not have."""
        wanted = options.get("dest-img-format", "")
        if wanted and wanted != self._format(sr):
            raise InvalidValue("dest-img-format", wanted)
        return await self._motion.move(vdi, sr, call.task)

    def _format(self, sr: str) -> str:
        for pbd in self._records.get("SR", sr)["PBDs"]:
            config: dict[str, str] = self._records.get("PBD", pbd)["device_config"]
            return config.get("format", "raw")
        return ""
