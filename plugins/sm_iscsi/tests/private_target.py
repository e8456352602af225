"""A tgtd of the test's own, with one target whose LUNs are files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from twisted.internet import reactor

from xapi_migrate.sm.tgt_ipc import Mode, Op
from xapi_migrate.sm.tgt_process import TgtProcess, free_port
from xapi_migrate.sm.timeouts import SMTimeouts

MIB = 1 << 20
IQN = "iqn.2026-01.test:shelf"
USER, PASSWORD = "hosts", "correct horse battery"
CATALOGUE = 4 * MIB
LUN = 64 * MIB


@attrs.frozen
class PrivateTarget:
    """LUN 1 is for the catalogue, 2 to `last` for VDIs."""

    folder: Path
    port: int
    last: int
    tgt: TgtProcess

    def config(self, first: int = 1, last: int = 0, **changes: str) -> dict[str, str]:
        """A device_config of an SR that has these LUNs."""
        account = {"chapuser": USER, "chappassword": PASSWORD}
        where = {"target": "127.0.0.1", "port": str(self.port), "targetIQN": IQN}
        return {**where, **account, "luns": f"{first}-{last or self.last}", **changes}

    def lun(self, number: int) -> Path:
        return self.folder / f"lun-{number}"


@asynccontextmanager
async def private_target(folder: Path, luns: int = 5, size: int = LUN) -> AsyncIterator[PrivateTarget]:
    """`folder` has a short name."""
    folder.mkdir(exist_ok=True)
    tgt = TgtProcess(reactor, folder / "tgt", SMTimeouts())
    port = free_port("127.0.0.1")
    await tgt.start("127.0.0.1", port)
    try:
        await tgt.ask(Mode.TARGET, Op.NEW, tid=1, text=f"targetname={IQN}")
        await tgt.ask(Mode.ACCOUNT, Op.NEW, text=f"user={USER},password={PASSWORD}")
        await tgt.ask(Mode.ACCOUNT, Op.BIND, tid=1, text=f"user={USER}")
        await tgt.ask(Mode.TARGET, Op.BIND, tid=1, text="initiator-address=ALL")
        made = PrivateTarget(folder, port, luns, tgt)
        for number in range(1, luns + 1):
            with made.lun(number).open("wb") as file:
                file.truncate(CATALOGUE if number == 1 else size)
            await tgt.ask(Mode.DEVICE, Op.NEW, tid=1, lun=number, text=f"path={made.lun(number)},bstype=rdwr")
            await tgt.ask(Mode.DEVICE, Op.UPDATE, tid=1, lun=number, text="targetOps thin_provisioning=1,")
        yield made
    finally:
        await tgt.kill()
