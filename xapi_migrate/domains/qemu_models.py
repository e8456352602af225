"""Which machine types and CPU models this host's QEMU has: asked of the program once, when a VM with others than the
host's own is to come."""

from __future__ import annotations

import os

from twisted.internet.utils import getProcessOutputAndValue

from xapi_migrate.domains.qemu_config import QEMUConfig


class QEMUModels:
    def __init__(self, config: QEMUConfig) -> None:
        self._config = config
        self._known: dict[str, frozenset[str]] = {}

    async def refuses(self, machine: str, cpu: str) -> str:
        """Why QEMU would not start with them, "" if it would. A CPU model may have features behind it
        ("qemu64,+x2apic"); whether the processors have those is seen when the domain is built."""
        model = cpu.partition(",")[0]
        if machine != self._config.machine and machine not in await self._of("-machine"):
            return f"its {self._config.binary} has no machine type {machine}"
        if model != self._config.cpu and model not in await self._of("-cpu"):
            return f"its {self._config.binary} has no CPU model {model}"
        return ""

    async def _of(self, option: str) -> frozenset[str]:
        if option not in self._known:
            arguments = ("-accel", self._config.accelerators[0], option, "help")
            out, _, code = await getProcessOutputAndValue(self._config.binary, arguments, os.environ)
            if code:
                return frozenset()
            lines = (line.split() for line in out.decode("utf-8", "replace").splitlines())
            # a name, or "x86" and a name
            self._known[option] = frozenset(word for words in lines for word in words[:2])
        return self._known[option]
