"""Figures of domains that run in QEMU; not settings of the daemon yet. The comments are the manual."""

from __future__ import annotations

import attrs


@attrs.frozen
class DomainTimeouts:
    """All in seconds."""

    monitor: float = 15.0
    """For a new QEMU to open its disks and answer on its monitor."""

    command: float = 30.0
    """For one monitor command. A domain that stops must first finish its I/O, which takes as long as its disks do."""

    question: float = 3.0
    """For a question about a domain's state. While QEMU writes the last of a domain's memory it answers nothing; the
    driver then says what it knows."""

    final_suspend: float = 60.0
    """For a live suspend to come to the point where the domain stops, if the guest dirties its memory faster than
    the stream takes it away. Past it `beyond` says what happens."""

    cancel: float = 3.0
    """For a suspend to end after it was cancelled; after a third of it the stream is torn out by force."""

    retry: float = 1.0
    """Between two attempts to let a domain go on whose disk refuses a request."""

    poll: float = 0.25
    """Between two looks at a suspend's progress."""


@attrs.frozen
class QEMUConfig:
    """How domains are run."""

    binary: str = "qemu-system-x86_64"
    """The program; searched in PATH."""

    accelerators: tuple[str, ...] = ("tcg",)
    """In order of preference: "kvm" where it works, "tcg" (emulation) everywhere. The first that QEMU can open
    is used."""

    exact_memory: bool = False
    """Whether emulated domains ("tcg") get exactly the memory that was asked for. QEMU before 9.0 then loses writes to
    memory while it moves a running domain; without it they get 8 KiB less where that matters, and stand still for
    about a millisecond per MiB when their first move begins. For hosts that all run QEMU 9.0 or later: sender and
    receiver must agree."""

    machine: str = "pc-i440fx-7.2"
    """The machine type of new VMs: always one with a version, never "pc", because it travels with the VM and the
    receiver must build the very same hardware."""

    cpu: str = "qemu64"
    """The CPU model of new VMs, one that every host can offer; "host" cannot migrate between unlike hosts."""

    reconnect_delay: int = 7 * 24 * 3600
    """Seconds for which a domain's disk waits for its datapath to come back before its I/O fails. Long: a guest that
    waits loses nothing, a guest that sees an error may."""

    bandwidth: int = 100 << 30
    """Bytes per second that a suspend may write at most."""

    downtime_limits: tuple[tuple[float, int], ...] = ((0.0, 40), (5.0, 100), (15.0, 300))
    """When the domain is stopped for the last of its memory: as soon as that would take no longer than so many
    milliseconds, at first and from so many seconds after the beginning on. QEMU estimates it from the bandwidth seen
    so far, so a low limit gives short interruptions and a busy guest needs a higher one to arrive at all."""

    beyond: str = "stop"
    """After `final_suspend` without an end in sight: "stop" the guest for as long as the rest takes, or "fail"."""

    beyond_limit: int = 600_000
    """The downtime limit, in milliseconds, that means "stop"."""

    timeouts: DomainTimeouts = DomainTimeouts()
