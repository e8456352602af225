"""What a case of the enumeration can find. What else goes wrong in one is no finding, but a bug of the test."""

from __future__ import annotations

from enum import Enum


class Finding(Enum):
    """What must never be."""

    TWO = "two copies run"
    NONE = "no copy runs in the end"
    OPEN_TWICE = "its disks are open for a domain at both hosts"
    BACK = "the guest went back in time: it printed a number twice"
    GAP = "the guest left a number out"
    LOST = "a write is lost"
    LEFT = "something is left behind"
    ENDLESS = "the client is never told how it ended"
    TOLD_WRONG = "the client is told something else than what is"
    STAYED = "it does not move, although nothing is in the way"
    MOVED = "it moves, although it was cancelled"
    DETOUR = "it takes other messages than the protocol's"


class Found(AssertionError):
    """One of them, as seen."""

    def __init__(self, finding: Finding, seen: object = "") -> None:
        super().__init__(f"{finding.value}: {seen}" if seen != "" else finding.value)
        self.finding = finding


def never(happened: object, finding: Finding, seen: object = "") -> None:
    """Found, with what is to be `seen`, if it `happened`."""
    if happened:
        raise Found(finding, seen)
