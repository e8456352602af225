"""Figures of domains that run on Xen. The comments are the manual."""

from __future__ import annotations

import attrs


@attrs.frozen
class XenTimeouts:
    """All in seconds."""

    call: float = 120.0
    """For one call of libxl's other than a stream. Hotplug scripts of devices are in it, which wait for each other."""

    settle: float = 15.0
    """For the requests of a domain that stands still to end, and its disks to be flushed."""

    question: float = 15.0
    """For a list of domains."""

    cancel: float = 20.0
    """For a stream to end after it was given up; its process is killed then."""

    retry: float = 1.0
    """Between two attempts to reach a datapath that has gone away."""


@attrs.frozen
class XenConfig:
    """How domains are run."""

    kernel: str = "/usr/lib/grub-xen/grub-i386-xen_pvh.bin"
    """What a new domain boots: by default GRUB, which reads the kernel from the VM's own disk (Debian's package
    grub-xen-host)."""

    ramdisk: str = ""
    """The initial memory disk of that kernel, if it takes one."""

    arguments: str = ""
    """That kernel's command line."""

    machine: str = "xen-pvh"
    """The only kind of hardware there is: PVH, which boots without emulated devices and, unlike PV, moves while it runs
    on every Xen that has no shadow paging."""

    tsc_mode: str = "default"
    """How domains see the time stamp counter: see xl.cfg(5)."""

    timeouts: XenTimeouts = XenTimeouts()
