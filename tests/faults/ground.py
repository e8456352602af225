"""The ground of the cases: two real hosts, the links between them, and one guest that moves from case to case.

A case strikes one migration at one point, lets everything heal, and looks: one guest, where its record says it is, its
counter unbroken over both consoles, every write that it told of on its disk; nothing left on the other host, nothing of
the migration on its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.faults.blows import Blow
from tests.faults.clients import Client
from tests.faults.failing_disk import FailingDisk
from tests.faults.link import Link
from tests.faults.points import Point
from tests.system.world import GuestOf, World, as_raw
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.lab import Lab
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.migration.stops import FOLDER
from xapi_migrate.processes import remains
from xapi_migrate.testing.guests import ticker

SETTINGS = {
    "heartbeat_interval": 0.5,
    "heartbeat_lost": 14.0,
    "connect": 2.0,
    "request": 10.0,
    "poll": 0.1,
    "ask": 0.3,
    "test_options": True,
}
SMALL = Guest(memory=32, disk=32, second_disk=4, filled=4)
PATIENCE = 60.0
HOST = re.compile(r"\bhost[12]\b|\b127\.0\.0\.1:[0-9]+")
STEP = re.compile(
    r"\(last step [1-5]\.[1-7]: |\bin phase [1-5]\b|\bafter [1-5]\.[1-7]\b|\([1-5]\.[1-7] to [1-5]\.[1-7]\)"
)
OF_STEP_1_5 = "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
POOR = re.compile(
    r"closed cleanly|ConnectionLost|Errno 9|the migration is (Shutting|WritingAbort|CleaningUp)|INTERNAL_ERROR"
)
"""Words of a library's, or of nobody's concern."""


class Ground:
    """One lab, and a new one after a case that failed. `sender` and `receiver` change places as the guest moves."""

    world: World
    sender: LabHost
    receiver: LabHost
    links: dict[str, Link]
    point: Point
    disks: dict[str, FailingDisk]
    """By host: below all of its SRs that it does not share."""

    label = "local-raw"
    """The SRs between which the guest moves."""

    def __init__(self) -> None:
        self.made: GuestOf | None = None
        self.healing = 0.0
        """Seconds from the blow to the end, in the latest case."""
        self._open: ExitStack | None = None

    def open(self) -> None:
        """Have a lab."""
        if self._open is not None:
            return
        with ExitStack() as stack:
            folder = Path(tempfile.mkdtemp(prefix="xf-"))
            if not os.environ.get("FAULTS_KEEP"):
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
            disks = stack.enter_context(ExitStack())  # they go after all that uses them
            lab = stack.enter_context(self.lab(folder / "lab"))
            srs, behind = folder / "lab" / "srs", folder / "disks"
            self.disks = {
                host.name: disks.enter_context(FailingDisk(srs / host.name, behind / host.name)) for host in lab.hosts
            }
            self.links = {host.name: stack.enter_context(Link(host)) for host in lab.hosts}
            self.world = self.world_of(lab)
            self.sender, self.receiver = lab.hosts
            self._open = stack.pop_all()

    def close(self) -> None:
        """End it and all that it left."""
        self.made = None
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()

    def no_guest(self) -> None:
        """The one that moved in the cases so far goes."""
        made, self.made = self.made, None
        if made is not None:
            for host in (self.sender, self.receiver):
                if made.uuid in self.world.vms(host):
                    self.world.destroy(host, made.uuid)

    def lab(self, folder: Path) -> Lab:
        return Lab(folder, settings=SETTINGS)

    def world_of(self, lab: Lab) -> World:
        return World(lab)

    def heal(self) -> None:
        """All disks work again."""
        for disk in self.disks.values():
            disk.heal()

    @property
    def link(self) -> Link:
        """From the sender to the receiver."""
        return self.links[self.receiver.name]

    def processes(self, host: LabHost, folder: str) -> list[int]:
        return self.world.processes(host, folder)

    # -- one case

    def run(self, point: Point, blow: Blow, client: Client | None = None) -> str:
        """Where the guest is in the end: sender, receiver, or halted at one of them."""
        self.open()
        self.point = point
        guest = self._guest()
        begun = {host.name: _size(host.console(guest.uuid)) for host in (self.sender, self.receiver)}
        stopped = self.sender if point.role == "sender" else self.receiver
        client = client or Client()
        failed = True
        try:
            self._to_the_point(point, stopped, client, guest.uuid)
            at = time.monotonic()
            blow.strike(self)
            if blow.hangs != point.role:
                _go_on(stopped)
            if blow.daemon:
                struck = self.sender if blow.daemon == "sender" else self.receiver
                self.world.wait(lambda: not struck.alive, f"{struck.name} does not end")
                struck.start()
                struck.wait_ready()
            time.sleep(blow.lasts)
            if blow.hangs:
                _go_on(self.sender if blow.hangs == "sender" else self.receiver)
            self.link.requests.lose.clear()
            self.link.mend()
            self.heal()
            owner = self._settled(guest)
            self.link.requests.deliveries.calm()
            self.healing = time.monotonic() - at
            where = self._look(guest, owner, begun, blow)
            client.end()
            _judge(point, blow, where, client.told)
            failed = False
            return where
        finally:
            client.end()
            if failed:
                self._tell(client)
                self.close()

    def _tell(self, client: Client) -> None:
        """Print what both sides say of a case that failed."""
        print(f"\ntask: {client.told}")
        for host in (self.sender, self.receiver):
            logs = sorted((host.state_dir / "migrations").glob("*.log"), key=lambda log: log.stat().st_mtime)
            for log in logs[-1:]:
                print(f"\n{host.name}, {log.name}:\n{log.read_text()[-4000:]}")
            print(f"\n{host.name}, stopped: {_state(host) == 'T'}, the end of its log:\n{host.log_end()}", flush=True)

    def _to_the_point(self, point: Point, host: LabHost, client: Client, uuid: str) -> None:
        if point.way != "moved":
            if point.way == "withdrawn":
                self.link.requests.lose |= {"PUT /control", "GET /control"}
            turn = "3.6" if point.way == "cancelled" else "InDoubt"
            self._stop_at(self.sender, "sender", turn)
            client.start(self, uuid)
            self._until_stopped(self.sender, point)
            if point.name == turn:
                return
            self._stop_at(host, point.role, point.name)
            client.cancel()
            _go_on(self.sender)
            self.world.wait(lambda: _state(self.sender) != "T" or _at(self.sender, point), "it does not go on")
        else:
            self._stop_at(host, point.role, point.name)
            client.start(self, uuid)
        self._until_stopped(host, point)

    def _stop_at(self, host: LabHost, role: str, name: str) -> None:
        folder = host.state_dir / FOLDER
        folder.mkdir(exist_ok=True)
        (folder / f"{role}-{name}").touch()

    def _until_stopped(self, host: LabHost, point: Point) -> None:
        self.world.wait(lambda: _state(host) == "T", f"{host.name} does not come to {point}")

    def _guest(self) -> GuestOf:
        if self.made is None:
            self.made = self.world.new_guest(self.sender, SMALL, self.label)
        return self.made

    # -- what came of it

    def _settled(self, guest: GuestOf) -> LabHost:
        """The host that has the VM, when neither side has anything left to decide."""
        found: list[LabHost] = []

        def settled() -> bool:
            hosts = (self.sender, self.receiver)
            if any(list((host.state_dir / "journal").glob("*")) for host in hosts):
                return False
            found[:] = [host for host in hosts if guest.uuid in self.world.vms(host)]
            return len(found) == 1 and not self.world.vms(found[0])[guest.uuid]["current_operations"]

        self.world.wait(settled, f"it does not settle, the VM is at {[h.name for h in found]}", PATIENCE)
        return found[0]

    def _look(self, guest: GuestOf, owner: LabHost, begun: dict[str, int], blow: Blow) -> str:
        other = self.receiver if owner is self.sender else self.sender
        role = "sender" if owner is self.sender else "receiver"
        power_state = self.world.vms(owner)[guest.uuid]["power_state"]
        self.world.nothing_left(other)
        place = f"halted at the {role}" if power_state == "Halted" else role
        if blow.guest is not None:
            allowed = blow.guest(self.point)
            assert place in allowed, f"it is {place}, and not {' or '.join(sorted(allowed))}"
        if power_state == "Halted" and blow.guest is not None:
            self.made = None
            assert self.processes(owner, "domains") == [], "it is Halted and there is a domain"
            self.world.destroy(owner, guest.uuid)
            self.world.nothing_left(owner)
            return place
        assert power_state == "Running", f"it is {power_state} at {owner.name}"
        assert len(self.processes(owner, "domains")) == 1
        self._ticks_on(guest, owner)
        printed = b"".join(_from(host.console(guest.uuid), begun[host.name]) for host in (self.sender, self.receiver))
        console = ticker.parse(printed.partition(b"\n")[2])  # without what is left of a line
        assert console.breaks == [], f"its counter is broken: {console.breaks}"
        assert console.anomalies == []
        with self._flushed(guest, owner), tempfile.TemporaryDirectory() as folder:
            images = self.world.images(owner, guest.uuid)
            assert len(images) == 2
            for number, image in enumerate(images):
                lost = guest.guest.ticker.lost(as_raw(image, Path(folder)), console.counters)
                assert lost == [], f"writes to disk {number} are lost: {lost}"
        self._only_the_guest(owner)
        self.sender, self.receiver = owner, other
        return role

    @contextmanager
    def _flushed(self, guest: GuestOf, host: LabHost) -> Iterator[None]:
        """The image's file has all that was written: one with tables of its own needs a guest that stands still."""
        if self.label == "local-raw":
            yield
            return
        with self.world.session(host) as api:
            vm = api.VM.get_by_uuid(guest.uuid)
            api.VM.pause(vm)
            yield
            api.VM.unpause(vm)

    def _ticks_on(self, guest: GuestOf, host: LabHost) -> None:
        before = _size(host.console(guest.uuid))
        self.world.wait(lambda: _size(host.console(guest.uuid)) > before, "it does not tick")

    def _only_the_guest(self, host: LabHost) -> None:
        """Of the migration nothing is left on the host of the guest."""

        def left() -> list[str]:
            found = [f"{folder} {pid}" for folder in ("tgt",) for pid in self.processes(host, folder)]
            for folder in ("copiers", "nbd"):
                found += [str(path) for path in (host.state_dir / folder).glob("*")]
                found += [f"process {path}" for path in remains.children(host.state_dir / folder).values()]
            datapaths = self.processes(host, "datapaths")
            return found if len(datapaths) == 2 else [*found, f"{len(datapaths)} datapaths of 2 disks"]

        self.world.wait(lambda: not left(), f"left at {host.name}: {left()}", 15)


def _judge(point: Point, blow: Blow, where: str, told: dict[str, Any]) -> None:
    """What the client was told fits what came of it."""
    if blow.harmless and point.way == "moved":
        assert where == "receiver", f"it did not move: {told.get('error_info')}"
        assert told["status"] == "success"
    moved = where.endswith("receiver")
    if told.get("status") in ("success", "failure", "cancelled"):
        assert (told["status"] == "success") is moved, f"its client was told {told}, and it is {where}"
    if told.get("status") == "failure":
        text = " ".join(told["error_info"])
        assert not blow.says or re.search(blow.says, text), f"it does not say what was struck: {text}"
        assert HOST.search(text), f"it names no host: {text}"
        assert STEP.search(text) or told["error_info"][0] == OF_STEP_1_5, f"it names no step: {text}"
        assert not POOR.search(text), f"it says nothing: {text}"


def _state(host: LabHost) -> str:
    """The daemon's process state: T, it stands still."""
    try:
        assert host.process is not None
        return Path(f"/proc/{host.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _at(host: LabHost, point: Point) -> bool:
    """Whether a stop has been used up."""
    return not (host.state_dir / FOLDER / f"{point.role}-{point.name}").exists()


def _go_on(host: LabHost) -> None:
    for process in host.daemons():
        os.kill(process.pid, signal.SIGCONT)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _from(path: Path, offset: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read()
