"""Real daemons and images: a VM is received into xapi's SR of VHDs and goes on to raw files of another toolstack."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest

from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.simulated.storage import SR_MOUNT, Images
from xapi_migrate import tls
from xapi_migrate.lab.host import LabHost
from xapi_migrate.migration.stops import FOLDER

pytestmark = pytest.mark.system
SIZES = (5 << 20, 8 << 20)
DECIDED = ("after-committed", "before-ended")
MAC = "02:00:00:00:00:09"


def content(number: int) -> bytes:
    block = bytes([number + 1]) + bytes(range(255))
    return bytes(1 << 20) + block * 4096 + bytes(SIZES[number] - (2 << 20))


def bytes_of(image: Path, kind: str, raw: Path) -> bytes:
    """What a guest would read."""
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", image, raw], check=True, timeout=60)
    return raw.read_bytes()


def wait(condition: Callable[[], object], otherwise: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


@attrs.define
class Overlay:
    """A simulated xapi, with an SR, and the daemon beside it."""

    xapi: SimulatedXapi
    host: LabHost
    sr: str
    images: Images

    def vm(self) -> dict[str, Any]:
        """The one that is there: its owner's, Halted."""
        [found] = self.xapi.database.records["VM"].values()
        assert (found["power_state"], found["is_a_template"], found["blocked_operations"]) == ("Halted", False, {})
        return found

    def disks(self, kind: str, raw: Path) -> list[bytes]:
        """In the order of the VM's devices."""
        records = self.xapi.database.records
        vbds = sorted((records["VBD"][ref] for ref in self.vm()["VBDs"]), key=lambda vbd: int(vbd["userdevice"]))
        uuids = [records["VDI"][vbd["VDI"]]["uuid"] for vbd in vbds]
        return [bytes_of(self.images.path(uuid), kind, raw) for uuid in uuids]

    def empty(self) -> bool:
        """No VM, no VDI, no image, and nothing remembered."""
        records = self.xapi.database.records
        there = [*records["VM"], *records["VDI"], *records["VBD"], *records["VIF"], *self.images.folder.iterdir()]
        return not there and not self.remembered()

    def remembered(self) -> list[Path]:
        state = self.host.state_dir
        return [path for name in ("arrivals", "upstream", "journal") for path in (state / name).glob("*")]


def overlay(name: str, folder: Path, images: Path, kind: str) -> Overlay:
    xapi = SimulatedXapi({"root": ("same for both", "root")})
    xapi.start()
    database = xapi.database
    if kind == "vhd":
        sr = database.create("SR", uuid=images.name, name_label="Local storage", type="ext", content_type="user")
        config = {"device": "/dev/x"}
    else:
        sr = database.create("SR", name_label="Files", type="file", content_type="user")
        config = {"location": str(images), "format": "raw"}
    database.create("PBD", SR=sr, host=database.host, currently_attached=True, device_config=config)
    database.storages[sr] = made = Images(images, kind)
    images.mkdir(parents=True)
    host = LabHost(name, folder, "same for both")
    host.configure({"upstream": xapi.upstream, "test_options": True})
    (host.state_dir / "users").unlink()
    return Overlay(xapi, host, sr, made)


@pytest.fixture
def places(short_tmp: Path) -> Iterator[tuple[LabHost, Overlay, Overlay]]:
    """A daemon that stands alone, one beside an xapi with an SR of type ext, one beside another with raw files."""
    sender = LabHost("sender", short_tmp / "s", "same for both")
    sender.configure({})
    mounted = SR_MOUNT / str(uuid4())
    first = overlay("first", short_tmp / "f", mounted, "vhd")
    second = overlay("second", short_tmp / "o", short_tmp / "raw", "raw")
    hosts = (sender, first.host, second.host)
    try:
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_ready()
        yield sender, first, second
    finally:
        for host in hosts:
            host.end()
        for one in (first, second):
            one.xapi.stop()
        shutil.rmtree(mounted)


def new_vm(session: Any, folder: Path) -> str:
    """Halted, with two disks and a VIF."""
    x = session.xenapi
    folder.mkdir()
    [host] = x.host.get_all()
    config = {"location": str(folder), "format": "raw"}
    sr = x.SR.create(host, config, "0", "images", "", "file", "user", False, {})
    vm = x.VM.create({"name_label": "a", "memory_static_max": "67108864", "VCPUs_max": "1"})
    for number, size in enumerate(SIZES):
        vdi = x.VDI.create({"SR": sr, "virtual_size": str(size), "name_label": f"disk {number}"})
        x.VBD.create({"VM": vm, "VDI": vdi, "userdevice": str(number)})
        (folder / f"{x.VDI.get_uuid(vdi)}.raw").write_bytes(content(number))
    x.VIF.create({"VM": vm, "network": x.network.get_all()[0], "device": "0", "MAC": MAC})
    return str(vm)


def test_a_vm_goes_from_host_to_toolstack_to_toolstack(
    places: tuple[LabHost, Overlay, Overlay], short_tmp: Path
) -> None:
    sender, first, second = places
    with sender.server.session() as there, first.host.server.session() as here:
        vm = new_vm(there, short_tmp / "images")
        uuid = there.xenapi.VM.get_uuid(vm)
        there.xenapi.VM.migrate(vm, here.xenapi.VM.receive(first.sr), {}, {})
        assert there.xenapi.VM.get_all() == [] and list((short_tmp / "images").glob("*.raw")) == []
    assert first.vm()["uuid"] == uuid
    # the VHD of the first disk is rounded up by its SR
    for number, found in enumerate(first.disks("vpc", short_tmp / "out")):
        assert found[: SIZES[number]] == content(number) and not any(found[SIZES[number] :])
    wait(lambda: not first.remembered(), "something is left beside the first")

    [(ref, _)] = first.xapi.database.records["VM"].items()
    with first.host.server.session() as there, second.host.server.session() as here:
        there.xenapi.VM.migrate(ref, here.xenapi.VM.receive(second.sr), {}, {})
    assert second.vm()["uuid"] == uuid
    for number, found in enumerate(second.disks("raw", short_tmp / "out")):
        assert found[: SIZES[number]] == content(number) and not any(found[SIZES[number] :])
    [vif] = second.xapi.database.records["VIF"].values()
    assert (vif["MAC"], vif["network"]) == (MAC, second.xapi.database.network)
    wait(first.empty, "something is left at the first")
    wait(lambda: not second.remembered(), "something is left beside the second")
    with second.host.server.session() as here:
        [(ref, _)] = second.xapi.database.records["VM"].items()
        here.xenapi.VM.start(ref, False, False)


def test_a_vm_is_received_for_another_daemon_of_this_kind(short_tmp: Path) -> None:
    """It is that daemon's in the end: it starts it, on images that nobody else has open."""
    sender, stack, beside = (
        LabHost(name, short_tmp / name[0], "same for both") for name in ("sender", "upper", "beside")
    )
    sender.configure({})
    stack.configure({})
    fingerprint = tls.HostIdentity.load(stack.state_dir).fingerprint()
    beside.configure({"upstream": f"{stack.https_url}#sha256={fingerprint}"})
    hosts = (sender, stack, beside)
    try:
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_ready()
        images = short_tmp / "received"
        images.mkdir()
        with sender.server.session() as there, beside.server.session() as here, stack.server.session() as direct:
            x = direct.xenapi
            config = {"location": str(images), "format": "raw"}
            sr = x.SR.create(x.host.get_all()[0], config, "0", "received", "", "file", "user", False, {})
            vm = new_vm(there, short_tmp / "images")
            uuid = there.xenapi.VM.get_uuid(vm)
            there.xenapi.VM.migrate(vm, here.xenapi.VM.receive(sr), {}, {})
            assert there.xenapi.VM.get_all() == [] and list((short_tmp / "images").glob("*.raw")) == []
            [ref] = x.VM.get_all()
            assert (x.VM.get_uuid(ref), x.VM.get_is_a_template(ref)) == (uuid, False)
            assert x.VM.get_blocked_operations(ref) == {}
            for vbd in x.VM.get_VBDs(ref):
                image = images / f"{x.VDI.get_uuid(x.VBD.get_VDI(vbd))}.raw"
                assert image.read_bytes() == content(int(x.VBD.get_userdevice(vbd)))
            assert [x.VIF.get_MAC(vif) for vif in x.VM.get_VIFs(ref)] == [MAC]
            wait(lambda: not list((beside.state_dir / "arrivals").iterdir()), "something is left beside the toolstack")
            x.VM.start(ref, True, False)
            x.VM.hard_shutdown(ref)
    finally:
        for host in hosts:
            host.end()


@pytest.mark.parametrize("point", ["before-prepared", "before-committed", "after-committed", "before-ended"])
def test_the_daemon_is_killed(places: tuple[LabHost, Overlay, Overlay], short_tmp: Path, point: str) -> None:
    """One side has it in the end, at the other nothing is left; where the sender kept it, it moves the next time."""
    sender, first, _ = places
    host = first.host
    (host.state_dir / FOLDER).mkdir(exist_ok=True)
    (host.state_dir / FOLDER / f"receiver-{point}").touch()
    with sender.server.session() as there, host.server.session() as here:
        vm = new_vm(there, short_tmp / "images")
        task = there.xenapi.Async.VM.migrate(vm, here.xenapi.VM.receive(first.sr), {}, {})
        wait(lambda: stopped(host), "the daemon does not come to that point")
        assert all(one["is_a_template"] or "ended" in point for one in first.xapi.database.records["VM"].values())
        host.kill()
        host.start()
        host.wait_ready()
        wait(lambda: there.xenapi.task.get_status(task) != "pending", "the migration does not end")
        assert there.xenapi.task.get_status(task) == ("success" if point in DECIDED else "failure")
        wait(lambda: not first.remembered(), "something is left beside the toolstack")
        if there.xenapi.VM.get_all():
            assert first.empty()
            there.xenapi.VM.migrate(vm, here.xenapi.VM.receive(first.sr), {}, {})
    for number, found in enumerate(first.disks("vpc", short_tmp / "out")):
        assert found[: SIZES[number]] == content(number)


def stopped(host: LabHost) -> bool:
    assert host.process is not None
    status = Path(f"/proc/{host.process.pid}/stat").read_text()
    return status[status.rindex(")") + 2] == "T"
