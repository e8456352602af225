"""Two real hosts, real guests, and what one looks at before, during and after a migration."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import XenAPI

from xapi_migrate.lab.host import USER, LabHost
from xapi_migrate.lab.lab import Lab
from xapi_migrate.lab.provisioning import Guest, start_guest
from xapi_migrate.processes import remains
from xapi_migrate.processes.child import RECORD
from xapi_migrate.testing.guests import ticker

TASK_ENDED = ("success", "failure", "cancelled")


@attrs.define
class Followed:
    """A task as it was seen from beginning to end. `steps` the ids in the order in which they were seen."""

    status: str
    progress: list[float]
    steps: list[str]
    error_info: list[str]
    other_config: dict[str, str]


@attrs.define
class GuestOf:
    """A guest and the uuids of its disks on the host where it was made."""

    uuid: str
    guest: Guest
    vdis: list[str]


class World:
    """A lab of two hosts, and XenAPI sessions to them, by the official library."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.source, self.destination = lab.hosts

    @contextmanager
    def session(self, host: LabHost) -> Iterator[Any]:
        session = XenAPI.Session(host.url)
        session.xenapi.login_with_password(USER, host.password, "2.23", "tests")
        try:
            yield session.xenapi
        finally:
            session.xenapi.session.logout()

    def new_guest(self, host: LabHost, guest: Guest, label: str = "local-raw") -> GuestOf:
        session = XenAPI.Session(host.url)
        session.xenapi.login_with_password(USER, host.password, "2.23", "tests")
        api = session.xenapi
        sr = api.SR.get_by_uuid(host.srs[label])
        vm, uuid = start_guest(session, sr, self.lab.sr_location(host, label), guest)
        vbds = sorted(api.VM.get_VBDs(vm), key=lambda vbd: int(api.VBD.get_userdevice(vbd)))
        vdis = [api.VDI.get_uuid(api.VBD.get_VDI(vbd)) for vbd in vbds]
        api.session.logout()
        self.wait(lambda: len(self.console(uuid, host).counters) > 20, "the guest does not tick")
        return GuestOf(uuid, guest, vdis)

    def console(self, uuid: str, *hosts: LabHost) -> ticker.Console:
        """What the guest has printed, on these hosts one after the other."""
        return ticker.read(*(host.console(uuid) for host in hosts))

    def ticks(self, uuid: str, host: LabHost, seconds: float = 0.6) -> bool:
        """Whether the guest prints on this host now."""
        before = len(self.console(uuid, host).counters)
        time.sleep(seconds)
        return len(self.console(uuid, host).counters) > before

    def wait(self, condition: Callable[[], bool], otherwise: str, patience: float = 30.0) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"{otherwise} (waited {patience:g} s)"
            time.sleep(0.05)

    def receive(self, sr: str = "local-raw", host: LabHost | None = None) -> list[str]:
        """VM.receive on the destination; its http URIs first."""
        host = host or self.destination
        with self.session(host) as api:
            return list(api.VM.receive(api.SR.get_by_uuid(host.srs[sr])))

    def begin(
        self, uuid: str, uris: list[str], vdi_srs: dict[str, str] | None = None, options: dict[str, str] | None = None
    ) -> str:
        """Async.VM.migrate on the source; `vdi_srs` source VDI uuid -> label of a destination SR. The task's ref."""
        maps = {}
        with self.session(self.destination) as api:
            refs = {label: api.SR.get_by_uuid(sr) for label, sr in self.destination.srs.items()}
        with self.session(self.source) as api:
            for vdi, label in (vdi_srs or {}).items():
                maps[api.VDI.get_by_uuid(vdi)] = refs.get(label, label)
            vm = api.VM.get_by_uuid(uuid)
            return str(api.Async.VM.migrate(vm, uris, maps, options or {}))

    def follow(
        self, task: str, at: Callable[[dict[str, Any]], None] = lambda record: None, host: LabHost | None = None,
        patience: float = 90,
    ) -> Followed:  # fmt: skip
        """Until the task has ended; `at` sees each record on the way."""
        progress: list[float] = []
        steps: list[str] = []
        deadline = time.monotonic() + patience
        with self.session(host or self.source) as api:
            while True:
                record = api.task.get_record(task)
                progress.append(float(record["progress"]))
                step = record["other_config"].get("step", "").split(" ")[0]
                if step and step not in steps[-1:]:
                    steps.append(step)
                if record["status"] in TASK_ENDED:
                    break
                at(record)
                assert time.monotonic() < deadline, f"the task does not end: {record}"
                time.sleep(0.03)
        return Followed(record["status"], progress, steps, record["error_info"], record["other_config"])

    def vms(self, host: LabHost) -> dict[str, dict[str, Any]]:
        """uuid -> record."""
        with self.session(host) as api:
            return {record["uuid"]: record for record in api.VM.get_all_records().values()}

    def story(self, host: LabHost, role: str) -> list[str]:
        """The step ids of the host's latest migration in this role, in the order taken."""
        logs = sorted((host.state_dir / "migrations").glob(f"{role}-*.log"), key=lambda path: path.stat().st_mtime)
        return re.findall(r'"step": "([1-5]\.[1-7])"', logs[-1].read_text())

    def left_behind(self, host: LabHost) -> list[str]:
        """Domains, datapaths, copiers, LUNs, mounts, images and records of VMs on a host that should have none."""
        left = []
        for name in ("domains", "datapaths", "copiers"):
            folder = host.state_dir / name
            left += [str(path.relative_to(host.state_dir)) for path in folder.glob("*")] if folder.exists() else []
        left += [f"process {path}" for path in remains.children(host.state_dir).values() if path.name != "tgt"]
        left += remains.mounts(host.state_dir)
        with self.session(host) as api:
            left += [f"VM {record['name_label']}" for record in api.VM.get_all_records().values()]
            left += [f"VDI {record['uuid']}" for record in api.VDI.get_all_records().values()]
            left += [f"VBD {record['uuid']}" for record in api.VBD.get_all_records().values()]
        for label in host.srs:
            left += [str(path) for path in self.lab.sr_location(host, label).glob("*") if path.is_file()]
        for folder in ("journal", "motions", "suspends"):
            left += [f"journal {path.name}" for path in (host.state_dir / folder).glob("*")]
        return left

    def nothing_left(self, host: LabHost) -> None:
        """Soon: the receiver's clean-up may go on for a moment after the client was told."""
        deadline = time.monotonic() + 10
        while (left := self.left_behind(host)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == [], f"left on {host.name}: {left}"

    def shut_down(self, host: LabHost, uuid: str) -> None:
        with self.session(host) as api:
            api.VM.hard_shutdown(api.VM.get_by_uuid(uuid))

    def empty(self) -> None:
        """No VMs on either host."""
        for host in (self.source, self.destination):
            for uuid, record in self.vms(host).items():
                if not record["is_control_domain"]:
                    self.destroy(host, uuid)

    def destroy(self, host: LabHost, uuid: str) -> None:
        """The VM and its disks, whatever its power state."""
        with self.session(host) as api:
            vm = api.VM.get_by_uuid(uuid)
            if api.VM.get_power_state(vm) != "Halted":
                api.VM.hard_shutdown(vm)
            vdis = [api.VBD.get_VDI(vbd) for vbd in api.VM.get_VBDs(vm)]
            api.VM.destroy(vm)
            for vdi in vdis:
                api.VDI.destroy(vdi)

    def images(self, host: LabHost, uuid: str) -> list[Path]:
        """The image files of a VM's disks in userdevice order."""
        with self.session(host) as api:
            vm = api.VM.get_by_uuid(uuid)
            vbds = sorted(api.VM.get_VBDs(vm), key=lambda vbd: int(api.VBD.get_userdevice(vbd)))
            vdis = [api.VDI.get_record(api.VBD.get_VDI(vbd)) for vbd in vbds]
            labels = [api.SR.get_name_label(vdi["SR"]) for vdi in vdis]
        found = []
        for vdi, label in zip(vdis, labels, strict=True):
            [path] = self.lab.sr_location(host, label).glob(f"{vdi['uuid']}.[rq]*")
            found.append(path)
        return found

    def processes(self, host: LabHost, folder: str) -> list[int]:
        """The pids of a host's processes of one kind: domains, datapaths, copiers, tgt."""
        return [n.pid for n, path in remains.children(host.state_dir).items() if folder in path.parts[-2:]]


def as_raw(image: Path, folder: Path) -> Path:
    """An image's content as a raw file."""
    if image.suffix == ".raw":
        return image
    raw = folder / f"{image.stem}.converted"
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(image), str(raw)], check=True)
    return raw


def equal(left: Path, right: Path) -> bool:
    """Whether two images, in use or not, hold the same bytes."""
    formats = [("raw" if path.suffix == ".raw" else "qcow2") for path in (left, right)]
    command = ["qemu-img", "compare", "-U", "-f", formats[0], "-F", formats[1], str(left), str(right)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


__all__ = ["RECORD", "Followed", "GuestOf", "World", "as_raw", "equal"]
