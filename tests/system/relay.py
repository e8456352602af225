"""A link with delay: a process with a TUN device in each of two namespaces that carries packets from one to the other.

While it runs the two data addresses reach each other through it alone; when it ends, however it does, its devices and
their routes are gone and packets take the other way again. This stands in for netem, which not every kernel has.

    host a  far ==> bounded queue, delay ==> far  host b        and the same from b to a
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Self

import attrs

from tests.system.namespaces import Link, inside

_TUNSETIFF = 0x400454CA
_TUN_NO_INFORMATION = 0x1001
_DEVICE = "far"
_MTU = 9000
"""Fewer packets for the same bytes: each costs a turn in Python."""
_QUEUE = 4 << 20
"""Bytes on the way in one direction; what comes on top is lost."""


@attrs.define
class Carried:
    """Bytes that arrived, and packets that did not: by chance, by a cut, by a full queue."""

    arrived: int = 0
    chance: int = 0
    cut: int = 0
    full: int = 0


@attrs.define
class _Direction:
    source: int
    target: int
    packets: deque[tuple[float, bytes]] = attrs.Factory(deque)
    queued: int = 0


class Relay:
    """`delay` in seconds each way, `loss` the share of packets lost by chance. Gone at the end of `with`."""

    def __init__(self, link: Link, delay: float, loss: float = 0.0) -> None:
        words = [str(link.path("a")), str(link.path("b")), str(delay), str(loss)]
        self._command = [sys.executable, "-m", __name__, *words]

    def __enter__(self) -> Self:
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(self._command, cwd=root, stdin=pipe, stdout=pipe, text=True)
        try:
            self.carried()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        early = self._child.poll()
        self._end()
        assert early is None, f"the relay ended by itself with {early}: packets took the other way"

    def cut(self) -> None:
        """Nothing comes through, nor what is on the way, and nobody is told."""
        self._say("cut")

    def heal(self) -> None:
        self._say("heal")

    def carried(self) -> Carried:
        """So far, in both directions."""
        return self._say("carried")

    def _say(self, word: str) -> Carried:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(f"{word}\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the relay has ended; it needs /dev/net/tun, and says above what it found"
        return Carried(**json.loads(answer))

    def _end(self) -> None:
        self._child.kill()
        self._child.communicate()


def _device(namespace: Path, here: str, there: str) -> int:
    """A TUN device in a namespace, by which it reaches `there`. Its descriptor, not blocking."""
    with inside(namespace):
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _TUN_NO_INFORMATION))
        for words in (
            ("link", "set", _DEVICE, "mtu", str(_MTU), "up"),
            ("route", "add", f"{there}/32", "dev", _DEVICE, "src", here),
        ):
            subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL)
    return tun


class _Carrier:
    def __init__(self, a: int, b: int, delay: float, loss: float) -> None:
        self._directions = {a: _Direction(a, b), b: _Direction(b, a)}
        self._delay, self._loss = delay, loss
        self._cut = False
        self._carried = Carried()
        self._chance = random.Random(0)

    def run(self) -> None:
        """Until standard input ends: with the tests, however they end."""
        while True:
            due = [one.packets[0][0] for one in self._directions.values() if one.packets]
            patience = max(0.0, min(due) - time.monotonic()) if due else None
            ready, _, _ = select.select([0, *self._directions], [], [], patience)
            for one in self._directions.values():
                self._deliver(one)
                if one.source in ready:
                    self._take(one)
            if 0 in ready:
                words = os.read(0, 4096).decode().split()
                if not words:
                    return
                for word in words:
                    self._obey(word)

    def _obey(self, word: str) -> None:
        self._cut = {"cut": True, "heal": False}.get(word, self._cut)
        if word == "cut":
            for one in self._directions.values():
                self._carried.cut += len(one.packets)
                one.packets.clear()
                one.queued = 0
        print(json.dumps(attrs.asdict(self._carried)), flush=True)

    def _take(self, one: _Direction) -> None:
        """A number of packets at most, for the other direction has its turn too."""
        for _ in range(64):
            try:
                packet = os.read(one.source, 65536)
            except BlockingIOError:
                return
            if self._cut:
                self._carried.cut += 1
            elif self._chance.random() < self._loss:
                self._carried.chance += 1
            elif one.queued + len(packet) > _QUEUE:
                self._carried.full += 1
            else:
                one.packets.append((time.monotonic() + self._delay, packet))
                one.queued += len(packet)

    def _deliver(self, one: _Direction) -> None:
        now = time.monotonic()
        while one.packets and one.packets[0][0] <= now:
            _, packet = one.packets.popleft()
            one.queued -= len(packet)
            os.write(one.target, packet)
            self._carried.arrived += len(packet)


def main() -> None:
    a, b, delay, loss = sys.argv[1:]
    addresses = ("10.213.0.1", "10.213.0.2")
    tuns = [_device(Path(a), *addresses), _device(Path(b), *addresses[::-1])]
    _Carrier(*tuns, float(delay), float(loss)).run()


if __name__ == "__main__":
    main()
