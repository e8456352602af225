"""The network interface by which this host is reached, as the kernel tells it."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.domains.taps import is_bridge

_NET = Path("/sys/class/net")
_IP_SECONDS = 20


@attrs.frozen
class HostInterface:
    """`device` the network card (or what there is in its place); `bridge` the bridge that it is a port of, "" if it is
    none's; `netmask` "" for IPv6."""

    device: str
    bridge: str = ""
    mac: str = ""
    mtu: int = 1500
    netmask: str = ""
    physical: bool = False


UNKNOWN = HostInterface("eth0", physical=True)
"""What is said where the kernel does not tell."""


def interface_with(address: str) -> HostInterface:
    """The interface that has this address. It blocks."""
    try:
        done = subprocess.run(
            ["ip", "-json", "address", "show"], capture_output=True, timeout=_IP_SECONDS, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        links = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN
    for link in links:
        for known in link.get("addr_info", []):
            if known.get("local") == address:
                return _described(link, known)
    return UNKNOWN


def _described(link: dict[str, Any], known: dict[str, Any]) -> HostInterface:
    name = str(link["ifname"])
    netmask = ""
    if known.get("family") == "inet":
        netmask = str(ipaddress.ip_interface(f"{known['local']}/{known['prefixlen']}").netmask)
    bridge = name if is_bridge(name) else ""
    ports = sorted(port.name for port in (_NET / name / "brif").iterdir()) if bridge else [name]
    cards = [port for port in ports if (_NET / port / "device").exists()]
    device = next(iter(cards), name)
    return HostInterface(
        device=device, bridge=bridge, mac=str(link.get("address", "")), mtu=int(link.get("mtu", 1500)),
        netmask=netmask, physical=bool(cards),
    )  # fmt: skip
