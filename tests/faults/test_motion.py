"""Storage motion of a real guest, struck where it is decided: the guest stands still there, whoever dies. What it had
printed before is on its disk, and where nothing of the guest has died it goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import XenAPI

from tests.faults.ground import SMALL, Ground, _state
from tests.faults.points import Point
from tests.system.test_doctor import command
from tests.system.world import as_raw
from xapi_migrate.lab.host import USER, LabHost

pytestmark = pytest.mark.system


@pytest.fixture(autouse=True)
def alone(ground: Ground) -> Iterator[None]:
    """The guest is this case's own. A case that failed may have left a daemon that stands still."""
    ground.open()
    ground.no_guest()
    yield
    if any(_state(host) == "T" for host in (ground.sender, ground.receiver)):
        ground.close()
    ground.no_guest()


def _begun(host: LabHost, vdi: str) -> str:
    """Its task. Nobody logs out: the daemon may stand still before that comes."""
    session = XenAPI.Session(host.url)
    session.xenapi.login_with_password(USER, host.password, "2.23", "faults")
    api = session.xenapi
    there = api.SR.get_by_uuid(host.srs["local-qcow2"])
    return str(api.Async.VDI.pool_migrate(api.VDI.get_by_uuid(vdi), there, {}))


@pytest.mark.parametrize("dies", ["the daemon", "the storage processes too"])
@pytest.mark.parametrize("point", ["before-committed", "after-committed"])
def test_no_write_is_lost_at_the_decision(ground: Ground, tmp_path: Path, point: str, dies: str) -> None:
    host, world = ground.sender, ground.world
    made = ground.made = world.new_guest(host, SMALL)
    ground._stop_at(host, "motion", point)
    task = _begun(host, made.vdis[0])
    ground._until_stopped(host, Point("motion", point))
    assert not world.ticks(made.uuid, host), "the guest goes on, and its flushes reach one image only"
    host.kill()
    if dies != "the daemon":
        for pid in ground.processes(host, "datapaths"):
            os.kill(pid, signal.SIGKILL)
    host.start()
    host.wait_ready()
    seen = world.follow(task, host=host)
    assert seen.status == ("success" if point == "after-committed" else "failure")
    if dies == "the daemon":
        assert world.ticks(made.uuid, host)
        world.shut_down(host, made.uuid)
    world.wait(lambda: world.vms(host)[made.uuid]["power_state"] == "Halted", "it is not Halted")
    console = world.console(made.uuid, host)
    assert console.breaks == [] and console.anomalies == []
    first, second = world.images(host, made.uuid)
    assert first.suffix == (".qcow2" if point == "after-committed" else ".raw")
    for image in (first, second):
        assert made.guest.ticker.lost(as_raw(image, tmp_path), console.counters) == []
    assert list((host.state_dir / "motions").glob("*")) == []


@pytest.mark.parametrize("end", ["it is plugged", "it is given up"])
def test_a_motion_whose_sr_is_away_waits_for_it(ground: Ground, end: str) -> None:
    """The daemon was killed in it, and finds the disk's SR away when it starts: it starts, and says what it waits for.
    The guest runs on all the while."""
    host, world = ground.sender, ground.world
    made = ground.made = world.new_guest(host, SMALL)
    point = "before-committed" if end == "it is given up" else "after-begun"
    ground._stop_at(host, "motion", point)
    task = _begun(host, made.vdis[0])
    ground._until_stopped(host, Point("motion", point))
    host.kill()
    place = world.lab.sr_location(host, "local-raw")
    away = place.rename(place.with_name("away"))
    try:
        host.start()
        host.wait_ready()
        told = command(host, "doctor").stdout
        assert f"({made.uuid}) is not settled: SR {host.srs['local-raw']}" in told and "plug its PBD" in told
        operations = world.vms(host)[made.uuid]["current_operations"]
        assert list(operations.values()) == ["migrate_send"] and world.ticks(made.uuid, host)
        if end == "it is given up":
            done = command(host, "force-settle", made.uuid, "--outcome", "given-up", "--yes")
            assert (done.returncode, "is as its record says" in done.stdout) == (0, True), done.stderr
            assert "Nothing is destroyed" in done.stderr
            assert world.vms(host)[made.uuid]["current_operations"] == {}
            again = command(host, "force-settle", made.uuid, "--outcome", "given-up", "--yes")
            assert again.returncode == 1 and "is not unsettled on this host" in again.stderr
    finally:
        away.rename(place)
    with world.session(host) as api:
        [pbd] = api.SR.get_PBDs(api.SR.get_by_uuid(host.srs["local-raw"]))
        api.PBD.plug(pbd)
    assert world.follow(task, host=host).status == "failure"
    world.wait(lambda: not list((host.state_dir / "motions").glob("*")), "it is not settled")
    assert world.vms(host)[made.uuid]["current_operations"] == {} and world.ticks(made.uuid, host)
    assert world.console(made.uuid, host).breaks == []
    assert command(host, "doctor").stdout == "Nothing is left behind.\n"
    if end == "it is given up":  # its mirror is there still, and goes with the datapath
        world.shut_down(host, made.uuid)
        assert "datapath" in command(host, "doctor").stdout
        assert command(host, "doctor", "--yes").returncode == 0
        assert ground.processes(host, "datapaths") == []
        with world.session(host) as api:
            for vdi in api.SR.get_VDIs(api.SR.get_by_uuid(host.srs["local-qcow2"])):
                api.VDI.destroy(vdi)
