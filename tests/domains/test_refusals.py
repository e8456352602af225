"""What is told of a disk that refuses requests, by a QEMU that is none."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import defer
from twisted.internet.task import Clock

from xapi_migrate.domains.interfaces import DomainDisk, DomainSpec
from xapi_migrate.domains.qemu_config import QEMUConfig
from xapi_migrate.domains.qemu_refusals import STOPPED, Refusals

DISKS = tuple(DomainDisk(device, f"/{device}", "disk") for device in "01")
ERROR = {"action": "stop", "reason": "Input/output error", "operation": "write"}


class Domain:
    """`counts`: what query-blockstats says of each disk's writes. `conts`: how often it was let go on."""

    domain_id, host, alive, config = "d", "h", True, QEMUConfig()
    spec = DomainSpec("d", "v", "demo", 1, 1, DISKS)

    def __init__(self) -> None:
        self.reactor = Clock()
        self.told: list[tuple[str, str]] = []
        self.refusals = Refusals(self, lambda domain, disk, why: self.told.append((disk.device, why)))  # type: ignore[arg-type]
        self.status, self.conts = "running", 0
        self.counts = {"0": 5, "1": 5}

    def ask(self, command: str, *_: Any, **__: Any) -> defer.Deferred[Any]:
        if command == "query-blockstats":
            return defer.succeed([
                {"node-name": f"disk{device}", "stats": {"wr_operations": count, "rd_operations": 7}}
                for device, count in self.counts.items()
            ])  # fmt: skip
        if command == "query-block":
            return defer.succeed([{"io-status": "failed", "inserted": {"node-name": "disk0"}}])
        if command == "cont":
            self.status, self.conts = "running", self.conts + 1
        return defer.succeed({"status": self.status})

    def refuse(self, device: str = "0", operation: str = "write") -> None:
        self.status = STOPPED
        self.refusals.seen({**ERROR, "operation": operation, "node-name": f"disk{device}"})


@pytest.fixture
def domain() -> Any:
    domain = Domain()
    yield domain
    domain.refusals.end()


def test_each_refusal_is_told_and_the_end_when_a_request_has_succeeded(domain: Domain) -> None:
    why = "refuses to write: Input/output error"
    for number in range(1, 4):
        domain.refuse()
        assert domain.told == [("0", why)] * number
        domain.reactor.advance(1)
        assert domain.conts == number
    domain.counts["0"] += 1
    domain.reactor.advance(1)
    assert domain.told[3:] == [("0", "")]
    domain.reactor.advance(10)
    assert domain.conts == 3 and len(domain.told) == 4


def test_a_disk_that_takes_long_to_refuse_does_not_work_meanwhile(domain: Domain) -> None:
    """It is not let go on either, for it runs. Reads that succeed say nothing of writes."""
    domain.refuse()
    domain.reactor.pump([1] * 30)
    assert domain.conts == 1 and len(domain.told) == 1
    domain.refuse()
    domain.reactor.pump([1] * 30)
    assert domain.conts == 2 and len(domain.told) == 2


def test_one_disk_works_again_before_the_other(domain: Domain) -> None:
    domain.refuse("0")
    domain.refuse("1")
    domain.reactor.advance(1)
    domain.counts["0"] += 1
    domain.refuse("1")
    domain.reactor.advance(1)
    domain.counts["1"] += 1
    domain.reactor.advance(1)
    assert domain.told[-2:] == [("0", ""), ("1", "")]


def test_a_restarted_daemon_tells_of_the_end(domain: Domain) -> None:
    domain.status = STOPPED
    found: list[bool] = []
    defer.ensureDeferred(domain.refusals.stopped_here()).addCallback(found.append)
    domain.reactor.advance(1)
    assert found == [True] and domain.conts == 1 and domain.told == []
    domain.counts["0"] += 1
    domain.reactor.advance(1)
    assert domain.told == [("0", "")]


def test_one_that_an_administrator_lets_go_on_is_followed_to_the_end(domain: Domain) -> None:
    domain.refuse()
    domain.refusals.hold()
    domain.reactor.pump([1] * 5)
    assert domain.conts == 0
    domain.refusals.cleared()
    domain.counts["0"] += 1
    domain.reactor.advance(1)
    assert domain.told[-1] == ("0", "")
