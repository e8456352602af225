"""What the migration engine and the toolstack ask of a hypervisor.

A domain is named by its own id (a uuid made by this host), never by its VM: while a VM is received
there are two domains for it, one on each host. Domains outlive the daemon; a driver finds them
again after a restart. Every method is safe to repeat.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum

import attrs
from zope.interface import Attribute, Interface


class DomainState(Enum):
    """What a domain is doing now.

    running: its processors may run. paused: they may not, and `unpause` lets them. incoming: waits
    for, or reads, a memory stream. suspended: stopped at the end of a `suspend`; only `resume`
    (after a failed migration) or `destroy` follow. shutdown: the guest powered off by itself.
    crashed: the hypervisor or the guest died. absent: there is no such domain.
    """

    RUNNING = "running"
    PAUSED = "paused"
    INCOMING = "incoming"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"
    ABSENT = "absent"


GONE = (DomainState.SHUTDOWN, DomainState.CRASHED, DomainState.ABSENT)
"""The states of a domain that will not run any more."""


@attrs.frozen
class DomainDisk:
    """A block device of a domain, reached as an NBD export on a unix socket.

    `device` is the VBD's userdevice ("0", "1", ...), which fixes where the guest sees it;
    `socket_path` absolute path of the datapath's NBD socket; `export` its export name;
    `serial` what the guest sees as the disk's serial (at most 20 characters).
    """

    device: str
    socket_path: str
    export: str
    read_only: bool = False
    bootable: bool = True
    serial: str = ""


@attrs.frozen
class DomainNic:
    """A network interface: `device` "0"..., `mac` aa:bb:cc:dd:ee:ff, `bridge` the bridge of the domain's host that it
    is on or "" for an interface that is connected to nothing; `mtu` bytes. The guest sees the same hardware whether it
    is connected or not. What is made for it on the host goes when the domain goes, however that ends."""

    device: str
    mac: str
    bridge: str = ""
    mtu: int = 1500


@attrs.frozen
class DomainSpec:
    """Everything that a domain's virtual hardware is made of.

    Memory in bytes. `machine` and `cpu` are pinned names ("pc-i440fx-7.2", "qemu64") that travel in
    the VM's metadata so that the receiver builds the same hardware; empty: the driver's default.
    `console_path` the file that the serial console is appended to.
    """

    domain_id: str
    vm_uuid: str
    name: str
    memory: int
    vcpus: int
    disks: tuple[DomainDisk, ...] = ()
    nics: tuple[DomainNic, ...] = ()
    machine: str = ""
    cpu: str = ""
    console_path: str = ""


@attrs.frozen
class DomainCapabilities:
    """`takes_socket`: `suspend` and `restore` may be handed a connected TCP socket (else the stream
    goes through a local pipe or socketpair that the daemon pumps). `stream` names the stream's format: sender
    and receiver must agree on it. `machine` and `cpu` are the pinned defaults for new VMs. `live`: it can
    suspend while the guest runs."""

    stream: str
    takes_socket: bool
    live: bool
    machine: str
    cpu: str


@attrs.frozen
class HostMemory:
    """Bytes that a host has in all, and those that a new domain could have."""

    total: int
    free: int


class ISuspension(Interface):
    """One `suspend` under way."""

    def suspended() -> Awaitable[None]:
        """Fires when the domain has finally suspended (step 4.3): its processors are stopped and all
        of its I/O is complete and flushed. Fails with DomainError when the stream ends before."""

    def proceed() -> Awaitable[None]:
        """Let the stream end. A driver that can hold the stream back at the suspend point does so until this
        is called; for the others it does nothing. Called after suspended() fired."""

    def finished() -> Awaitable[None]:
        """Fires when the whole stream has been written and the descriptor closed; the domain is then
        `suspended`. Fails with DomainError when it could not be; the domain then either runs on or
        waits for `resume`."""

    def progress() -> tuple[int, int]:
        """(bytes sent, bytes that will have been sent in all, an estimate that may grow)."""

    def measures() -> str:
        """What is being done about a guest that changes its memory faster than the stream takes it away, a sentence
        for people; "" as long as nothing has to be."""

    def cancel() -> Awaitable[None]:
        """Give up. Afterwards `resume` brings the guest back; never raises; repeatable."""


class IRestoration(Interface):
    """One `restore` under way."""

    def accepting() -> Awaitable[None]:
        """Fires when the hypervisor owns its own duplicate of the descriptor and reads from it."""

    def finished() -> Awaitable[None]:
        """Fires when the stream is in and the domain is `paused`. Fails with DomainError otherwise (the
        domain is then destroyed)."""

    def cancel() -> Awaitable[None]:
        """Give up and destroy the domain; never raises; repeatable."""


class IDomainDriver(Interface):
    """A hypervisor."""

    name: str = Attribute("short name: qemu, xen")

    def capabilities() -> DomainCapabilities:
        """What this driver can do; known without asking the hypervisor."""

    def open() -> Awaitable[None]:
        """Once, at start of the daemon: find the domains that an earlier daemon left running."""

    def close() -> Awaitable[None]:
        """Let go of all domains without ending any of them."""

    def start(spec: DomainSpec) -> Awaitable[None]:
        """Boot a domain; it runs when this fires. DomainError if it does not come up, for example because a bridge
        is not there, and then nothing is left of it."""

    def suspend(domain_id: str, fd: int, live: bool = True) -> Awaitable[ISuspension]:
        """Begin to write the domain's memory and device state to `fd`, while it runs if `live`.

        Fires when the hypervisor has its own duplicate of `fd`; the caller then closes its own or keeps
        it as an emergency brake (shutdown(2) on a socket makes the stream fail).
        """

    def restore(spec: DomainSpec, fd: int) -> Awaitable[IRestoration]:
        """Build a domain from `spec` that reads its state from `fd` and ends `paused`. Until it runs nobody on its
        bridges hears of it."""

    def unpause(domain_id: str) -> Awaitable[None]:
        """Let a paused domain run (step 5.2, after COMMIT), and announce its MAC addresses on its bridges, so that
        what is meant for it comes here. One that runs already is announced once more."""

    def pause(domain_id: str) -> Awaitable[None]:
        """Stop a running domain's processors; its I/O is complete when this fires."""

    def resume(domain_id: str, paused: bool = False) -> Awaitable[None]:
        """After a suspend that failed or was given up: let the domain run again where it stopped. Its
        disks must be active. A domain that runs already stays as it is.

        `paused`: it was paused before the suspend, and is so afterwards; its guest may have run for a moment."""

    def shutdown(domain_id: str) -> Awaitable[None]:
        """Press the power button; the guest may ignore it."""

    def destroy(domain_id: str) -> Awaitable[None]:
        """End a domain at once (killed, never asked) and forget it. No domain: nothing happens."""

    def lose_disk(socket_path: str, reason: str) -> Awaitable[None]:
        """The disk behind this socket has lost writes that it had taken, which to a guest is a failure of power: every
        domain that has it is ended at once, and is `crashed`."""

    def state(domain_id: str) -> Awaitable[DomainState]:
        """What the domain is doing now."""

    def why(domain_id: str) -> str:
        """Why a domain is `crashed`, a sentence, as far as is known; "" for every other domain, and for those that
        ended with their host."""

    def memory() -> HostMemory:
        """The host's memory, as far as it is known without asking."""

    def untouched() -> int:
        """Bytes of memory that this host's domains, those that are being built too, have been promised and do not take
        up yet: what the host reports as free is less by so much. 0 where the hypervisor takes it all at once."""

    def refuses(machine: str, cpu: str) -> Awaitable[str]:
        """Why no domain with this pinned hardware can run here, a sentence; "" if one can."""

    def domains() -> Awaitable[list[str]]:
        """The ids of all domains of this driver on this host, whatever their state."""

    def watch(callback: Callable[[str, DomainState], None]) -> None:
        """`callback(domain_id, state)` is called whenever a domain changes state by itself (guest
        power-off, crash). Several may watch."""

    def watch_disks(callback: Callable[[str, DomainDisk, str], None]) -> None:
        """`callback(domain_id, disk, why)` is called each time a disk refuses a request, which keeps the guest waiting:
        the request is made again and again. `why`: what the disk does and the error, "refuses to write: Input/output
        error". It is called once more, with "", when the disk takes requests again. Several may watch."""
