"""Two hosts in network namespaces of their own, and the link between them: slow, or cut.

    host A                 switch                  host B
    data  10.213.0.1 --- bridge, tbf each way --- 10.213.0.2  data
    mgmt  10.214.0.1 ---- bridge, 10.214.0.254 -- 10.214.0.2  mgmt

The hosts offer their data addresses only; the tests speak to them over the other network, also while the link is cut.
Nothing of it is seen outside these namespaces.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs

from xapi_migrate.lab.host import LabHost

_NEWNET = 0x40000000
_FORWARDING, _DISABLED = "3", "0"
_libc = ctypes.CDLL(None, use_errno=True)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def inside(namespace: Path) -> Iterator[None]:
    """This thread opens its sockets in a network namespace."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(there)
        yield
    finally:
        _enter(before)
        os.close(before)
        os.close(there)


class Link:
    """The namespaces and what joins them; gone at the end of `with`, with whatever else was in them."""

    def __init__(self) -> None:
        self.names = {side: f"xm{os.getpid()}{side}" for side in "abs"}

    def __enter__(self) -> Self:
        try:
            for name in self.names.values():
                _run("ip", "netns", "add", name)
                _run("ip", "-n", name, "link", "set", "lo", "up")
            for number, network in enumerate(("data", "mgmt")):
                self._switch("link", "add", network, "type", "bridge")
                self._switch("link", "set", network, "up")
                for side in "ab":
                    self._join(network, side, f"10.{213 + number}.0.{'ab'.index(side) + 1}/24")
            self._switch("addr", "add", "10.214.0.254/24", "dev", "mgmt")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def path(self, side: str) -> Path:
        """Of host a's or b's namespace, or the switch's (s)."""
        return Path("/run/netns") / self.names[side]

    def shape(self, rate: str) -> None:
        """What each host gets over the data network, as tc writes it."""
        for side in "ab":
            options = ("rate", rate, "burst", "64kb", "latency", "100ms")
            _run("tc", "-n", self.names["s"], "qdisc", "replace", "dev", f"data{side}", "root", "tbf", *options)

    def cut(self) -> None:
        """Nothing comes through the data network any more, and nobody is told."""
        self._port(_DISABLED)

    def heal(self) -> None:
        self._port(_FORWARDING)

    def _port(self, state: str) -> None:
        _run("bridge", "-n", self.names["s"], "link", "set", "dev", "datab", "state", state)

    def _switch(self, *words: str) -> None:
        _run("ip", "-n", self.names["s"], *words)

    def _join(self, network: str, side: str, address: str) -> None:
        there, port = self.names[side], f"{network}{side}"
        _run("ip", "link", "add", port, "netns", self.names["s"], "type", "veth", "peer", network, "netns", there)
        self._switch("link", "set", port, "master", network, "up")
        _run("ip", "-n", there, "addr", "add", address, "dev", network)
        _run("ip", "-n", there, "link", "set", network, "up")


@attrs.define
class DistantHost(LabHost):
    """A lab's host in a namespace: `number` 1 is host a."""

    number: int = 1
    namespace: Path = Path("/")

    @property
    def url(self) -> str:
        return f"http://10.214.0.{self.number}:{self.port}"

    def configure(self, settings: Mapping[str, Any]) -> None:
        own = {
            "listen": (f"tcp:{self.port}:interface=0.0.0.0", f"tls:{self.https_port}:interface=0.0.0.0"),
            "addresses": (f"10.213.0.{self.number}",),
        }
        super().configure({**settings, **own})

    def start(self) -> None:
        with inside(self.namespace):
            super().start()


def distant_hosts(link: Link, hosts: list[LabHost]) -> list[LabHost]:
    """The same hosts of a lab that is not started yet, each in its namespace."""
    return [
        DistantHost(host.name, host.state_dir, host.password, number=number, namespace=link.path(side))
        for number, (side, host) in enumerate(zip("ab", hosts, strict=True), 1)
    ]
