"""Two daemons on one database, real guests: what moves within a pool, who answers, what a dead member stops."""

from __future__ import annotations

import time
from typing import Any

import pytest
import XenAPI

from tests.pool.pool_world import SMALL, PoolWorld
from xapi_migrate.lab.host import LabHost
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system


def goes_on(pool: PoolWorld, uuid: str, *hosts: LabHost) -> None:
    """The guest counts without a break over these hosts, and prints on the last of them now."""
    assert pool.ticks(uuid, hosts[-1])
    whole = ticker.read(*(host.console(uuid) for host in hosts))
    assert whole.breaks == [] and whole.anomalies == [] and len(whole.counters) > 20


def pool_migrate(pool: PoolWorld, uuid: str, to: LabHost, asked: LabHost) -> dict[str, Any]:
    with pool.session(asked) as api:
        task = api.Async.VM.pool_migrate(api.VM.get_by_uuid(uuid), pool.ref(to), {})
    seen = pool.follow(task, host=asked)
    assert seen.status == "success", seen.error_info
    return seen.other_config


def test_on_shared_storage_only_memory_moves_and_the_record_stays(pool: PoolWorld) -> None:
    made = pool.new_guest(pool.source, SMALL, "shared")
    with pool.session(pool.destination) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        vdis = sorted(made.vdis)
        token = getattr(api.event, "from")(["vm"], "", 0.0)["token"]
        before = api.VM_metrics.get_start_time(api.VM.get_metrics(vm))
        # asked where the VM is not, it is carried to where it is
        pool_migrate(pool, made.uuid, pool.destination, pool.destination)
        pool.wait(lambda: api.VM.get_resident_on(vm) == pool.ref(pool.destination), "it has not moved")
        events = getattr(api.event, "from")(["vm"], token, 0.0)["events"]
        own = [event["operation"] for event in events if event["ref"] == vm]
        assert own and set(own) == {"mod"}
        pool.wait(lambda: len(api.VM.get_all()) == 1, "a hidden record is left")
    assert pool.resident(made.uuid) is pool.destination
    goes_on(pool, made.uuid, pool.source, pool.destination)
    pool.is_left(pool.source)
    with pool.session(pool.source) as api:
        vbds = api.VM.get_VBDs(vm)
        assert sorted(api.VDI.get_uuid(api.VBD.get_VDI(vbd)) for vbd in vbds) == vdis
        assert len(api.VDI.get_all()) == 2
        pool.wait(lambda: api.VM.get_current_operations(vm) == {}, "it stays busy")
        assert "pool_migrate" in api.VM.get_allowed_operations(vm)
        assert len(api.VM.get_consoles(vm)) == 1
        assert int(api.VM.get_domid(vm)) > 0 and sorted(map(api.VBD.get_device, vbds)) == ["xvda", "xvdb"]
        assert api.VM_metrics.get_start_time(api.VM.get_metrics(vm)) == before
    # and back as qcow2: first its disks move beneath it to the other shared SR
    with pool.session(pool.source) as api:
        for vbd in vbds:
            sr = api.SR.get_by_uuid(pool.source.srs["shared-qcow2"])
            api.VDI.pool_migrate(api.VBD.get_VDI(vbd), sr, {})
    pool_migrate(pool, made.uuid, pool.source, pool.source)
    assert pool.resident(made.uuid) is pool.source
    assert pool.ticks(made.uuid, pool.source)
    pool.is_left(pool.destination)
    pool.shut_down(pool.destination, made.uuid)
    images = list(pool.lab.sr_location(pool.source, "shared-qcow2").glob("*.qcow2"))
    assert len(images) == 2 and not list(pool.lab.sr_location(pool.source, "shared").glob("*.raw"))


def test_on_local_storage_disks_move_with_migrate_send_and_pool_migrate_is_refused(pool: PoolWorld) -> None:
    made = pool.new_guest(pool.source, SMALL)
    there = pool.ref(pool.destination)
    with pool.session(pool.source) as api:
        vm = api.VM.get_by_uuid(made.uuid)
        local = api.SR.get_by_uuid(pool.source.srs["local-raw"])
        with pytest.raises(XenAPI.Failure) as refused:
            api.VM.pool_migrate(vm, there, {})
        assert refused.value.details == ["VM_REQUIRES_SR", vm, local]
        sr = api.SR.get_by_uuid(pool.destination.srs["local-qcow2"])
        vdis = {api.VBD.get_VDI(vbd): sr for vbd in api.VM.get_VBDs(vm)}
        network = api.network.get_all()[0]
        dest = api.host.migrate_receive(there, network, {})  # made by the other member
        task = api.Async.VM.migrate_send(vm, dest, True, vdis, {}, {})
        seen = pool.follow(task)
        assert seen.status == "success", seen.error_info
        assert api.task.get_result(task) == f"<value>{vm}</value>"
    assert pool.resident(made.uuid) is pool.destination
    goes_on(pool, made.uuid, pool.source, pool.destination)
    pool.is_left(pool.source)
    with pool.session(pool.destination) as api:
        assert api.VM.get_all() == [vm]
        records = [api.VDI.get_record(api.VBD.get_VDI(vbd)) for vbd in api.VM.get_VBDs(vm)]
        assert {record["SR"] for record in records} == {sr} and len(api.VDI.get_all()) == 2
        assert not {record["uuid"] for record in records} & set(made.vdis)


def test_receive_and_migrate_of_the_sequence_within_a_pool(pool: PoolWorld) -> None:
    made = pool.new_guest(pool.source, SMALL, "shared")
    task = pool.begin(made.uuid, pool.receive("shared"))
    seen = pool.follow(task)
    assert seen.status == "success", seen.error_info
    assert pool.resident(made.uuid) is pool.destination
    goes_on(pool, made.uuid, pool.source, pool.destination)
    pool.is_left(pool.source)


def test_any_member_answers_and_a_change_wakes_who_waits_at_another(pool: PoolWorld) -> None:
    [uuid] = pool.small_guests(1, pool.source)
    with pool.session(pool.source) as here, pool.session(pool.destination) as there:
        vm = there.VM.get_by_uuid(uuid)
        token = getattr(there.event, "from")(["vm"], "", 0.0)["token"]
        begun = time.monotonic()
        here.VM.set_name_description(vm, "changed at the other member")
        events = getattr(there.event, "from")(["vm"], token, 20.0)["events"]
        assert time.monotonic() - begun < 5
        assert [event["snapshot"]["name_description"] for event in events if event["ref"] == vm] == [
            "changed at the other member"
        ]
        # a call about a VM, a host and a task of another member
        task = there.Async.VM.hard_reboot(vm)
        assert there.task.get_resident_on(task) == pool.ref(pool.source)
        assert pool.follow(task, host=pool.destination).status == "success"
        there.task.destroy(task)
        assert task not in here.task.get_all()
        assert there.host.get_servertime(pool.ref(pool.source))
        there.VM.hard_shutdown(vm)
        assert here.VM.get_power_state(vm) == "Halted"
        # it starts where that is asked for, or can be; once
        there.VM.start(vm, False, False)
        assert there.VM.get_resident_on(vm) == pool.ref(pool.destination)
        with pytest.raises(XenAPI.Failure) as attached:
            here.SR.forget(here.SR.get_by_uuid(pool.source.srs["shared-qcow2"]))
        assert attached.value.details[0] in ("SR_HAS_PBD", "VDI_IN_USE")
        with pytest.raises(XenAPI.Failure) as late:
            here.VM.start_on(vm, pool.ref(pool.source), False, False)
        assert late.value.details[0] == "VM_BAD_POWER_STATE"


def test_ten_are_evacuated_three_at_a_time(pool: PoolWorld) -> None:
    uuids = pool.small_guests(10, pool.source)
    here, there = pool.ref(pool.source), pool.ref(pool.destination)
    with pool.session(pool.destination) as api:
        api.host.disable(here)
        try:
            assert api.host.get_vms_which_prevent_evacuation(here) == {}
            task = api.Async.host.evacuate(here)
            most = seen_waiting = 0
            deadline = time.monotonic() + 100
            while api.task.get_status(task) == "pending":
                assert time.monotonic() < deadline, "it does not end"
                parts = [r for r in api.task.get_all_records().values() if "evacuation" in r["name_description"]]
                pending = [r["other_config"] for r in parts if r["status"] == "pending"]
                # from DONE on the next one may begin
                busy = [o for o in pending if "step" in o and o["step"][:3] not in ("5.1", "5.3", "5.4")]
                most = max(most, len(busy))
                seen_waiting = max(seen_waiting, sum("waiting" in o for o in pending))
                time.sleep(0.05)
            record = api.task.get_record(task)
            assert record["status"] == "success", record["error_info"]
            assert 2 <= most <= 3 and seen_waiting >= 5
            assert {api.VM.get_resident_on(vm) for vm in api.VM.get_all()} == {there}
            assert api.host.get_vms_which_prevent_evacuation(here) == {}
        finally:
            api.host.enable(here)
    for uuid in uuids:
        assert pool.console(uuid, pool.source, pool.destination).breaks == []
        assert pool.ticks(uuid, pool.destination, 0.3)
    pool.is_left(pool.source)


def test_a_member_that_dies_does_not_stop_the_others(pool: PoolWorld) -> None:
    [lost] = pool.small_guests(1, pool.destination)
    there = pool.ref(pool.destination)
    pool.wait(lambda: len(pool.vms(pool.source)) == 1, "the VM is not seen")
    pool.destination.kill()
    with pool.session(pool.source) as api:
        vm = api.VM.get_by_uuid(lost)
        begun = time.monotonic()
        for call in (lambda: api.VM.hard_shutdown(vm), lambda: api.host.get_servertime(there)):
            with pytest.raises(XenAPI.Failure) as refused:
                call()
            assert refused.value.details == ["HOST_OFFLINE", there]
        assert time.monotonic() - begun < 10
        metrics = api.host.get_metrics(there)
        pool.wait(lambda: not api.host_metrics.get_live(metrics), "it is still taken for alive")
        assert api.pool.get_master(api.pool.get_all()[0]) == pool.ref(pool.source)
        [other] = pool.small_guests(1, pool.source)
        assert there not in api.VM.get_possible_hosts(api.VM.get_by_uuid(other))
        with pytest.raises(XenAPI.Failure) as refused:
            api.VM.pool_migrate(api.VM.get_by_uuid(other), there, {})
        assert refused.value.details == ["HOST_OFFLINE", there]
        with pytest.raises(XenAPI.Failure) as refused:
            api.VM.power_state_reset(api.VM.get_by_uuid(other))
        assert refused.value.details[0] == "OPERATION_NOT_ALLOWED", "its host answers"
        assert pool.ticks(lost, pool.destination), "the guest ends with its daemon"
        pool.destination.start()
        pool.destination.wait_ready()
        pool.both_live()
        api.VM.hard_shutdown(vm)
        assert api.VM.get_power_state(vm) == "Halted"
        assert api.VM.get_power_state(api.VM.get_by_uuid(other)) == "Running"


def test_over_postgresql(postgresql_pool: PoolWorld) -> None:
    pool = postgresql_pool
    made = pool.new_guest(pool.source, SMALL, "shared")
    pool_migrate(pool, made.uuid, pool.destination, pool.destination)
    assert pool.resident(made.uuid) is pool.destination
    goes_on(pool, made.uuid, pool.source, pool.destination)
    pool.is_left(pool.source)


def test_cancelled_suspended_and_paused_by_whoever_is_asked(pool: PoolWorld) -> None:
    [uuid] = pool.small_guests(1, pool.source)
    here, there = pool.ref(pool.source), pool.ref(pool.destination)
    with pool.session(pool.source) as api, pool.session(pool.destination) as other:
        vm = other.VM.get_by_uuid(uuid)
        task = other.Async.VM.pool_migrate(vm, there, {})
        cancelled: list[bool] = []

        def cancel(record: dict[str, Any]) -> None:
            if "cancel" in record["allowed_operations"] and not cancelled:
                cancelled.append(True)
                other.task.cancel(task)

        assert pool.follow(task, cancel, host=pool.destination).status == "cancelled"
        assert (api.VM.get_resident_on(vm), api.VM.get_power_state(vm)) == (here, "Running")
        pool.wait(lambda: other.VM.get_all() == [vm], "the hidden record is left")
        pool.is_left(pool.destination)
        assert pool.ticks(uuid, pool.source)
        # its memory is on the shared SR, and resumed by the other member
        other.VM.suspend(vm)
        assert api.VM.get_power_state(vm) == "Suspended"
        api.VM.resume_on(vm, there, False, False)
        assert (other.VM.get_resident_on(vm), other.VM.get_power_state(vm)) == (there, "Running")
        goes_on(pool, uuid, pool.source, pool.destination)
        pool.is_left(pool.source)
        api.VM.pause(vm)
        api.VM.pool_migrate(vm, here, {})
        assert (other.VM.get_resident_on(vm), other.VM.get_power_state(vm)) == (here, "Paused")
        other.VM.unpause(vm)
        assert pool.ticks(uuid, pool.source)
