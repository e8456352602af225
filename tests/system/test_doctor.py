"""doctor and force-settle after the worst: what is left is found, told and removed; the guest runs on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.proxy import Proxy
from tests.system.world import World
from xapi_migrate.lab.host import USER, LabHost
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system
DATABASE = "records.db"


def command(host: LabHost, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("xapi-migrate")), *arguments, "--url", host.url, "--user", USER]
    environment = {**os.environ, "XAPI_MIGRATE_PASSWORD": host.password}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)


def doctor(host: LabHost, *arguments: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(command(host, "doctor", "--json", *arguments).stdout)
    return found


def kinds(host: LabHost) -> set[str]:
    return {one["kind"] for one in doctor(host)}


def test_both_journals_are_lost_in_the_bulk_copy(world: World) -> None:
    """Nobody knows of the migration any more, and everything of it is still there."""
    made = world.new_guest(world.source, Guest(disk=512, filled=400))
    task = world.begin(made.uuid, world.receive())

    class Copying(Exception):
        pass

    def copying(record: dict[str, object]) -> None:
        if dict(record["other_config"])["step"].startswith("3.6"):  # type: ignore[call-overload]
            raise Copying

    with pytest.raises(Copying):
        world.follow(task, copying)
    for host in world.lab.hosts:
        host.kill()
    for host in world.lab.hosts:
        shutil.rmtree(host.state_dir / "journal")
        host.start()
        host.wait_ready()
    assert world.ticks(made.uuid, world.source)
    assert kinds(world.source) == {"copier"}
    assert {"target", "VM", "VDI"} <= kinds(world.destination)
    told = command(world.destination, "doctor")
    assert told.returncode == 1
    assert "it was to become" in told.stdout
    refused = command(world.destination, "doctor", "--remove")
    assert refused.returncode != 0  # nobody is there to say yes
    for host in world.lab.hosts:
        done = command(host, "doctor", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Still there: 0." in done.stdout
        assert doctor(host) == []
    world.nothing_left(world.destination)
    assert world.ticks(made.uuid, world.source)
    assert world.console(made.uuid, world.source).breaks == []
    assert command(world.source, "doctor").stdout == "Nothing is left behind.\n"


def test_a_healthy_host_with_a_guest_has_nothing_left_behind(world: World) -> None:
    made = world.new_guest(world.source, Guest())
    seen: list[list[dict[str, str]]] = []
    task = world.begin(made.uuid, world.receive())
    world.follow(task, lambda record: seen.append(doctor(world.source) + doctor(world.destination)))
    assert seen
    assert not any(seen)
    assert doctor(world.source) + doctor(world.destination) == []


def test_a_receiver_that_never_comes_back(world: World) -> None:
    """`done` is lost and the receiver is gone: the sender waits until an administrator says that the VM stays."""
    made = world.new_guest(world.source, Guest())

    def gone(request: str) -> None:
        if request == "PUT /control":
            world.destination.kill()
            for pid in world.processes(world.destination, "domains"):
                os.kill(pid, signal.SIGKILL)

    with Proxy(("127.0.0.1", world.destination.port)) as proxy:
        proxy.before = gone
        task = world.begin(made.uuid, proxy.uris(world.receive()))
        world.wait(
            lambda: f"VM {made.uuid} is in doubt" in command(world.source, "doctor").stdout, "it is never in doubt"
        )
        assert not world.ticks(made.uuid, world.source)
        other = command(world.source, "force-settle", made.uuid, "--outcome", "moved")
        assert other.returncode != 0  # the uuid was not typed
        settled = command(world.source, "force-settle", made.uuid, "--outcome", "stays", "--yes")
        assert settled.returncode == 0, settled.stderr
        assert "two copies" in settled.stderr
        assert world.follow(task).status == "failure"
        assert world.ticks(made.uuid, world.source)
        assert world.console(made.uuid, world.source).breaks == []
        again = command(world.source, "force-settle", made.uuid, "--outcome", "stays", "--yes")
        assert "is not in doubt" in again.stderr
        # Its journal knows of the VM, and goes when the sender has told it how that ended.
        world.destination.start()
        world.destination.wait_ready()
        world.nothing_left(world.destination)
    assert world.ticks(made.uuid, world.source)


def test_a_domain_and_datapaths_of_a_vm_that_the_records_do_not_know(world: World) -> None:
    """The database was put back to what it was before the VM was made, while its guest ran: it is told, runs on until
    somebody says that it is to go, and its disks stay."""
    host = world.source
    host.stop()
    saved = {path: path.read_bytes() for path in host.state_dir.glob(f"{DATABASE}*")}
    host.start()
    host.wait_ready()
    made = world.new_guest(host, Guest())
    images = world.images(host, made.uuid)
    host.stop()
    for path in host.state_dir.glob(f"{DATABASE}*"):
        path.unlink()
    for path, content in saved.items():
        path.write_bytes(content)
    host.start()
    host.wait_ready()
    try:
        assert made.uuid not in world.vms(host)
        domain, *datapaths = found = doctor(host)
        assert (domain["kind"], domain["remedy"]) == ("domain", "it is ended at once")
        assert {(one["kind"], one["name"]) for one in datapaths} == {("datapath", vdi) for vdi in made.vdis}
        assert all("the VDI stays" in one["remedy"] for one in datapaths)
        told = command(host, "doctor")
        assert told.returncode == 1
        assert all(one[part] in told.stdout for one in found for part in ("kind", "name", "why", "remedy"))
        assert world.ticks(made.uuid, host), "to tell of it has ended it"
        done = command(host, "doctor", "--yes")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Removed: 3. Still there: 0." in done.stdout
        assert world.processes(host, "domains") == [] == world.processes(host, "datapaths")
        assert all(image.exists() for image in images)
        assert doctor(host) == []
    finally:
        command(host, "doctor", "--yes")
        with world.session(host) as api:
            api.SR.scan(api.SR.get_by_uuid(host.srs["local-raw"]))
            for uuid in made.vdis:
                api.VDI.destroy(api.VDI.get_by_uuid(uuid))
    world.nothing_left(host)
