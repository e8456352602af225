"""The volume group that the stand-in for LVM's commands keeps."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import attrs
from sm_lvm.driver import LVMDriver

from tests.sm.two_hosts import QUICK
from xapi_migrate.sm.interfaces import ISRBackend, SRConfig

MIB = 1 << 20
PROGRAMS = ("lvm", "blkdiscard")
SR = "8d3f2a52-0c70-4f4d-9a4f-6a8f5d2a7b10"


@attrs.frozen
class FakeGroup:
    """`home` is where the stand-in keeps its state."""

    home: Path
    timeouts = QUICK
    pause = 0.001
    """Seconds between two writes of a guest."""

    def sr(self, **config: str) -> ISRBackend:
        return LVMDriver().open_sr(SRConfig(SR, "lvm", {"volume_group": "vg0", **config}))

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "state.json").read_text())
        return found

    def change(self, **state: Any) -> None:
        (self.home / "state.json").write_text(json.dumps({**self.state(), **state}))

    def calls(self) -> list[str]:
        made = self.home / "calls"
        return made.read_text().splitlines() if made.exists() else []

    def volumes(self) -> set[str]:
        return set(self.state()["volumes"])

    def tags(self) -> list[str]:
        tags: list[str] = self.state()["tags"]
        return tags

    def active(self) -> list[str]:
        return sorted(path.name for path in self.home.glob("dev/vg0/*"))


def make_group(folder: Path) -> tuple[FakeGroup, dict[str, str]]:
    """A group of 128 MiB, with a thin pool "pool" of 64 MiB more, and the environment in which the stand-in is found
    before the real programs."""
    home, programs = folder / "lvm", folder / "bin"
    home.mkdir()
    programs.mkdir()
    for name in PROGRAMS:
        shutil.copy(Path(__file__).with_name("fake_lvm.py"), programs / name)
        (programs / name).chmod(0o755)
    pool = {"size": 64 * MIB, "tags": [], "pool": "", "thin_pool": True, "zero": True}
    state = {"name": "vg0", "size": 192 * MIB, "tags": ["of_somebody"], "volumes": {"pool": pool}}
    (home / "state.json").write_text(json.dumps(state))
    return FakeGroup(home), {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_LVM": str(home)}
