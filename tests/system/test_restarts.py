"""Restarts of daemons with real guests: what has ended stays ended, what runs stays running."""

from __future__ import annotations

import pytest

from tests.system.proxy import Proxy
from tests.system.world import World
from xapi_migrate.lab.provisioning import Guest
from xapi_migrate.processes.child import RECORD, start_time

pytestmark = pytest.mark.system


def test_a_vm_that_has_moved_survives_the_restarts_of_both_daemons(world: World) -> None:
    """The sender's farewell does not arrive, so both sides remember the migration. Meanwhile its owner has shut the VM
    down and started it again."""
    made = world.new_guest(world.source, Guest())
    there = world.destination

    def no_farewell(request: str) -> None:
        if request == "DELETE":
            raise OSError("it is lost")

    with Proxy(("127.0.0.1", there.port)) as proxy:
        proxy.before = no_farewell
        seen = world.follow(world.begin(made.uuid, proxy.uris(world.receive())))
        assert (seen.status, seen.error_info) == ("success", [])
        with world.session(there) as api:
            vm = api.VM.get_by_uuid(made.uuid)
            api.VM.hard_shutdown(vm)
            api.VM.start(vm, False, False)
        world.wait(lambda: world.ticks(made.uuid, there), "it does not tick after its start")
        domains = world.processes(there, "domains")
        for end in (there.stop, there.kill):
            end()
            world.source.kill()
            for host in world.lab.hosts:
                host.start()
                host.wait_ready()
            assert [len(list((host.state_dir / "journal").glob("*"))) for host in world.lab.hosts] == [1, 1]
            assert world.processes(there, "domains") == domains
            assert world.vms(there)[made.uuid]["power_state"] == "Running"
            assert world.ticks(made.uuid, there)
        proxy.before = lambda request: None
        world.nothing_left(world.source)
        world.wait(lambda: not list((there.state_dir / "journal").glob("*")), "the receiver still remembers")
    [image, _] = world.images(there, made.uuid)
    world.shut_down(there, made.uuid)
    assert made.guest.ticker.lost(image, world.console(made.uuid, there).counters[-1:]) == []


def test_a_daemon_is_killed_when_it_has_just_started_a_domain(world: World) -> None:
    """It runs and nobody knows of it. A guest that ran on would write to the disks of its next start."""
    host = world.source
    made = world.new_guest(host, Guest())
    before = world.processes(host, "domains")
    host.kill()
    for record in (host.state_dir / "domains").glob(f"*/{RECORD}"):
        record.unlink()
    host.start()
    host.wait_ready()
    assert not any(start_time(pid) for pid in before)
    with world.session(host) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        world.wait(lambda: api.VM.get_power_state(vm) == "Halted", "the VM has not ended")
        api.VM.start(vm, False, False)
    world.wait(lambda: world.ticks(made.uuid, host), "it does not tick after its start")
    assert len(world.processes(host, "domains")) == 1
    world.shut_down(host, made.uuid)
