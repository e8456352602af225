"""What the engine needs of the host it runs on, in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from ..config import Config
from ..domains.interfaces import DomainSpec, IDomainDriver
from ..sm.interfaces import ISR, Attachment
from ..store.interfaces import IRecords
from .claims import Claims
from .interfaces import IPeer
from .journal import IJournals
from .keeping import Keeper
from .stops import nowhere
from .story import Story


class TaskHandle(Protocol):
    """A XenAPI task that the engine works for."""

    @property
    def ref(self) -> str: ...
    def set_progress(self, progress: float) -> None:
        """0..1; never goes back."""

    def set_other(self, key: str, value: str) -> None:
        """A key of other_config; an empty value takes it away."""

    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        """While set, the task can be cancelled."""


@attrs.frozen
class TaskRef:
    """A task of which no more is known than its ref."""

    ref: str


class TaskMaker(Protocol):
    """The receiver's own tasks, and the ends of others. One that is over, or is not there, is left alone."""

    def begin(self, label: str, description: str) -> TaskHandle: ...
    def succeed(self, task: Any, value: Any) -> None: ...
    def fail(self, task: Any, error: Any) -> None: ...


class Toolstack(Protocol):
    """The VMs and SRs of this host."""

    def sr(self, ref: str) -> ISR:
        """SrNotAttached, HandleInvalid."""

    def disks(self, vm: str) -> list[str]:
        """The refs of the VM's Disk VBDs that hold a VDI, in userdevice order."""

    def domain_of(self, vm: str) -> str:
        """The id of the VM's domain, "" if it has none."""

    def set_domain(self, vm: str, domain: str) -> None:
        """The VM's domain is this one; "": none."""

    def spec_of(self, vm: str, domain: str, attachments: Mapping[str, Attachment]) -> DomainSpec:
        """The virtual hardware of the VM, its disks attached so (VBD ref -> attachment)."""

    def check_network(self, network: str) -> None:
        """BridgeNotAvailable if a VIF on the network cannot be connected and must be."""

    def begin_operation(self, vm: str, operation: str, task: str) -> None:
        """Mark the VM busy; OtherOperationInProgress if it is."""

    async def hold(self, vm: str) -> None:
        """No other member of the pool starts or sends a VM that has no domain, until `end_operation`. VmBadPowerState
        if one does already."""

    def retake_operation(self, vm: str, operation: str, task: str) -> None:
        """After a restart: the VM is busy with this and with nothing else, whatever its record says."""

    def end_operation(self, vm: str, task: str) -> None:
        """The VM is free again; no VM, no harm."""


@attrs.define
class Host:
    """This host, as both machines' work sees it. `clock` is a reactor or a test's Clock; `peers` makes the sender's
    client for a list of URIs; `stories` is where migration logs go."""

    ref: str
    config: Config
    clock: Any
    records: IRecords
    toolstack: Toolstack
    domains: IDomainDriver
    tasks: TaskMaker
    journals: IJournals
    peers: Callable[[list[str]], IPeer]
    claims: Claims
    stories: Path | None = None
    keeper: Keeper | None = None
    """Whose the VMs are that are received here; None: this host's own."""
    later: Callable[[Awaitable[None]], None] = lambda work: None
    """Lets a piece of work go on after its migration has ended (acknowledgements)."""
    at: Callable[[str, str], None] = nowhere
    """Told of each point of each migration, as (role, name): see stops.py."""

    @property
    def name(self) -> str:
        """Its name-label, as it is now."""
        return str(self.records.get("host", self.ref)["name_label"])

    def story(self, role: str, migration: str) -> Story:
        """A new one, or more of the one that an earlier daemon began."""
        return Story(self.clock, role, migration, self.stories, self.at)
