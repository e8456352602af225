"""The same as the stand-in's group (tests/fake_group.py), of real LVM: the fixtures of the virtual machine."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator

import attrs
import pytest
from sm_lvm.driver import LVMDriver

from xapi_migrate.sm.interfaces import ISRBackend, SRConfig
from xapi_migrate.sm.timeouts import SMTimeouts

pytest.register_assert_rewrite("test_lvm_contract", "test_lvm_copy")

PATIENT = SMTimeouts(start=60.0, identity=60.0, attach=60.0, stall=60.0, guard=60.0, poll=0.5, close_lun=20.0)
"""An emulated machine is slow."""


def lvm(*arguments: str) -> list[str]:
    """Lines of its answer."""
    done = subprocess.run(["lvm", *arguments], check=True, capture_output=True, text=True, timeout=120)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


@attrs.frozen
class RealGroup:
    """A group that vm_init has made, empty but for its thin pool "pool"."""

    name: str
    timeouts = PATIENT
    pause = 0.05

    def sr(self, **config: str) -> ISRBackend:
        return LVMDriver().open_sr(SRConfig(str(uuid.uuid4()), "lvm", {"volume_group": self.name, **config}))

    def volumes(self) -> set[str]:
        return set(lvm("lvs", "--noheadings", "--options", "lv_name", self.name))

    def tags(self) -> list[str]:
        return [
            tag for line in lvm("vgs", "--noheadings", "--options", "vg_tags", self.name) for tag in line.split(",")
        ]

    def active(self) -> list[str]:
        return sorted(
            set(lvm("lvs", "--noheadings", "--options", "lv_name", "--select", "lv_active=active", self.name))
            - {"pool"}
        )

    def empty(self) -> None:
        """Whatever a test that failed has left."""
        for name in self.volumes() - {"pool"}:
            lvm("lvremove", "--yes", f"{self.name}/{name}")
        for tag in self.tags():
            if tag != "of_somebody":
                lvm("vgchange", "--deltag", tag, self.name)


@pytest.fixture
def group() -> Iterator[RealGroup]:
    yield from _emptied("vg_t")


@pytest.fixture
def other_group() -> Iterator[RealGroup]:
    yield from _emptied("vg_r")


def _emptied(name: str) -> Iterator[RealGroup]:
    group = RealGroup(name)
    yield group
    left, active, tags = group.volumes() - {"pool"}, group.active(), group.tags()
    group.empty()
    if active:
        pytest.fail(f"still active in {name}: {active} of {left}")
    if tags != ["of_somebody"]:
        pytest.fail(f"tags left in {name}: {tags}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is shown when it happens: the machine may be ended before the summary."""
    if report.failed:
        print(f"\n{report.longreprtext}", flush=True)
