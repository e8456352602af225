"""QEMU's command line for a domain.

It depends on the spec, the configuration and whether KVM works alone, and every device has a fixed place: a receiver
that builds the domain from the same spec builds the same hardware, which QEMU's stream takes for granted and does not
check.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec
from xapi_migrate.domains.qemu_config import QEMUConfig

MONITOR = "qmp.sock"
"""The monitor's socket, in the domain's folder, which is QEMU's working directory."""

WHOLE = 256 << 10
"""Bytes. Memory that is a multiple of it goes, in QEMU before 9.0, through a quick search for dirtied pages that
forgets to tell the emulator to note the next write to them. See docs/decisions/linux-under-tcg.md."""

_GRAIN = 8 << 10
"""QEMU rounds memory up to a multiple of it."""

_KVM = "/dev/kvm"
_NO_TAPS: Mapping[str, int] = {}
_FIRST_NIC = 2
_FIRST_DISK = 9
_LAST = 31


def disk_link(disk: DomainDisk) -> str:
    """The name, in the domain's folder, of the symbolic link to a disk's NBD socket. A unix address holds 108 bytes and
    the socket's own path may be longer; connect(2) follows links, and a link that is changed moves the disk."""
    return f"disk{disk.device}.sock"


def disk_links(spec: DomainSpec) -> Mapping[str, Path]:
    """The links that must be in the folder before QEMU starts: name to target."""
    return {disk_link(disk): Path(disk.socket_path) for disk in spec.disks}


def _quoted(value: str) -> str:
    """QEMU's option syntax: a comma in a value is written twice."""
    return value.replace(",", ",,")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", re.ASCII)


def _plain(value: str, pattern: re.Pattern[str], what: str) -> str:
    """A name that a client may have given, and nothing behind it: -machine and -cpu take options that open files."""
    if not pattern.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is no {what}")
    return value


def _slot(first: int, last: int, device: str, what: str) -> str:
    """The PCI slot of a device: by its number, so that it is the same on every host."""
    if not device.isdecimal() or first + int(device) > last:
        raise ValueError(f"there is no place for {what} {device}: it must be a number up to {last - first}")
    return f"{first + int(device):#x}"


def _disk(disk: DomainDisk, boot_index: int, config: QEMUConfig) -> list[str]:
    node = f"disk{disk.device}"
    read_only = "on" if disk.read_only else "off"
    # A geometry of our own: otherwise QEMU reads the partition table to guess one, at a moment
    # at which the receiver's disk is not there yet.
    device = (
        f"virtio-blk-pci,drive={node},id=vbd{disk.device},addr={_slot(_FIRST_DISK, _LAST, disk.device, 'disk')},"
        # QEMU lets the guest run on by itself when a stream fails, whether the disks are active by then or not. A
        # request that fails then stops the domain, and is made again when it goes on.
        # A write to a read-only disk would fail each time, so the guest is told.
        f"werror={'report' if disk.read_only else 'stop'},rerror=stop,share-rw=on,cyls=16383,heads=16,secs=63"
    )
    if disk.serial:
        device += f",serial={_quoted(disk.serial[:20])}"
    if disk.bootable:
        device += f",bootindex={boot_index}"
    return [
        "-blockdev",
        f"driver=nbd,node-name={node},server.type=unix,server.path={disk_link(disk)},export={_quoted(disk.export)},"
        f"read-only={read_only},discard=unmap,reconnect-delay={config.reconnect_delay}",
        "-device",
        device,
    ]


def _nic(nic: DomainNic, tap: int | None) -> list[str]:
    slot = _slot(_FIRST_NIC, _FIRST_DISK - 1, nic.device, "network interface")
    device = f"virtio-net-pci,id=vif{nic.device},mac={_plain(nic.mac, _MAC, 'MAC address')},addr={slot},romfile="
    if tap is None:
        return ["-device", device]
    return ["-netdev", f"tap,id=net{nic.device},fd={tap}", "-device", f"{device},netdev=net{nic.device}"]


def _emulated(config: QEMUConfig) -> bool:
    """Whether QEMU will emulate the processors: it takes the first accelerator that works."""
    for accelerator in config.accelerators:
        name = accelerator.partition(",")[0]
        if name != "kvm":
            return name == "tcg"
        try:
            os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
            return False
        except OSError:
            continue
    return False


def _memory(spec: DomainSpec, config: QEMUConfig) -> int:
    """In bytes."""
    rounded = -(-spec.memory // _GRAIN) * _GRAIN
    if rounded % WHOLE == 0 and not config.exact_memory and _emulated(config):
        return rounded - _GRAIN
    return spec.memory


def arguments(spec: DomainSpec, config: QEMUConfig, *, incoming: bool, taps: Mapping[str, int] = _NO_TAPS) -> list[str]:
    """The whole argv. `taps`: the descriptors of the connected interfaces' taps, by device. ValueError when the spec
    asks for hardware that there is no place for."""
    argv = [config.binary, "-name", f"guest={_quoted(spec.name or spec.vm_uuid)}", "-uuid", spec.vm_uuid]
    argv += ["-machine", _plain(spec.machine, _NAME, "machine type") if spec.machine else config.machine]
    argv += ["-cpu", _plain(spec.cpu, _NAME, "processor model") if spec.cpu else config.cpu]
    for accelerator in config.accelerators:
        argv += ["-accel", accelerator]
    argv += ["-m", f"size={_memory(spec, config) // 1024}k", "-smp", str(spec.vcpus)]
    argv += ["-no-user-config", "-nodefaults", "-display", "none"]
    # The process stays when its guest powers off or panics: somebody has to be told, and the record put right.
    argv += ["-action", "reboot=reset,shutdown=pause,panic=pause"]
    argv += ["-qmp", f"unix:{MONITOR},server=on,wait=off"]
    if spec.console_path:
        argv += [
            "-chardev",
            f"file,id=console,path={_quoted(spec.console_path)},append=on",
            "-serial",
            "chardev:console",
        ]
    else:
        argv += ["-serial", "null"]
    for boot_index, disk in enumerate(sorted(spec.disks, key=lambda disk: disk.device.rjust(10))):
        argv += _disk(disk, boot_index, config)
    for nic in spec.nics:
        argv += _nic(nic, taps.get(nic.device))
    if incoming:
        # -S: the domain must not run before the receiver has committed itself.
        argv += ["-S", "-incoming", "defer"]
    return argv
