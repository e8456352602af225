"""A domain's network interfaces on the bridges of its host.

A tap is there as long as a descriptor of it is open, and the hypervisor's is the last: whatever ends the domain, be
the daemon there or not, ends its taps, and nothing is left to be removed. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

from xapi_migrate.domains.interfaces import DomainNic

BRIDGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
"""What this project takes for the name of a bridge; the kernel would take more."""

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
# Without IFF_VNET_HDR: the guest sees the same features whether its interface is connected or not, so that it can move
# to a host where it is not.
_TAP_WITHOUT_HEADERS = 0x0002 | 0x1000
_CAP_NET_ADMIN = 12
_IP_SECONDS = 20


def is_bridge(name: str) -> bool:
    """Whether this host has a bridge of this name."""
    return bool(BRIDGE_NAME.fullmatch(name)) and Path(f"/sys/class/net/{name}/bridge").is_dir()


def forbidden() -> str:
    """Why this process may make no taps; "" if it may."""
    if not os.access(_TUN, os.R_OK | os.W_OK):
        return f"{_TUN} cannot be opened"
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    if not int(effective.split()[1], 16) >> _CAP_NET_ADMIN & 1:
        return "this process may not change the host's network (CAP_NET_ADMIN)"
    return ""


def ip(*arguments: str) -> None:
    """`ip` with these arguments. OSError with its words when it fails."""
    try:
        done = subprocess.run(
            ["ip", *arguments],
            capture_output=True,
            text=True,
            timeout=_IP_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"ip {' '.join(arguments)} took longer than {_IP_SECONDS} seconds") from None
    if done.returncode:
        said = done.stderr.strip().rsplit("\n", 1)[-1]
        raise OSError(f"ip {' '.join(arguments)}: {said or f'status {done.returncode}'}")


def tap_name(domain_id: str, nic: DomainNic) -> str:
    """At most 15 characters; who looks at the bridge can tell whose it is."""
    return f"vif{re.sub('[^0-9A-Za-z]', '', domain_id)[:8]}.{nic.device}"[:15]


def _open_tap(name: str, nic: DomainNic) -> int:
    if not is_bridge(nic.bridge):
        raise OSError(f"interface {nic.device}: this host has no bridge {nic.bridge!r}")
    try:
        tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as failure:
        raise OSError(f"interface {nic.device}: {_TUN} cannot be opened: {failure.strerror}") from None
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADERS))
        ip("link", "set", "dev", name, "mtu", str(nic.mtu), "master", nic.bridge, "up")
    except OSError as failure:
        os.close(tap)
        reason = failure.strerror or str(failure)
        raise OSError(f"interface {nic.device} cannot be put on bridge {nic.bridge}: {reason}") from None
    return tap


def open_taps(domain_id: str, nics: Iterable[DomainNic], opened: dict[str, int]) -> None:
    """One tap for each interface that has a bridge, on that bridge and up; into `opened`, by device, so that whoever
    gives up meanwhile can close them. OSError with a sentence."""
    for nic in nics:
        if nic.bridge:
            opened[nic.device] = _open_tap(tap_name(domain_id, nic), nic)


def close_taps(opened: dict[str, int]) -> None:
    """This process's descriptors. A tap stays where a hypervisor has its own."""
    while opened:
        _, tap = opened.popitem()
        os.close(tap)
