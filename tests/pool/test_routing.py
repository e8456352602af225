"""Which member a call goes to, and where a VM could be: by records alone."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from xapi_migrate.errors import MigrateError, OperationNotAllowed
from xapi_migrate.pool.routing import Routing
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.testing.fake_bridges import FakeBridges
from xapi_migrate.testing.fake_hypervisor import FakeHypervisor
from xapi_migrate.testing.two_hosts import Unwritten
from xapi_migrate.toolstack.networks import Networks
from xapi_migrate.toolstack.placement import Placement
from xapi_migrate.toolstack.placement_calls import PlacementCalls
from xapi_migrate.xenapi.own_calls import data_model

MEMORY = 1 << 30


class ThreeHosts:
    """a (this one), b, c; SR `shared` at all, SR `of_b` at b only."""

    def __init__(self) -> None:
        self.records = records = Records(data_model(), Clock())
        records._database = Unwritten()  # type: ignore[assignment]
        self.a, self.b, self.c = (self.host(name) for name in "abc")
        self.shared, self.of_b = (records.create("SR", name_label=name) for name in ("shared", "of_b"))
        self.pbds = {host: self.pbd(host, self.shared) for host in (self.a, self.b, self.c)}
        self.pbd(self.b, self.of_b)
        self.placement = Placement(
            records, self.a, Networks(records, FakeBridges(FakeHypervisor(Clock()))), lambda: MEMORY
        )
        self.routing = Routing(records, self.a, self.placement)

    def host(self, name: str) -> str:
        metrics = self.records.create("host_metrics", live=True, memory_free=MEMORY)
        return self.records.create("host", name_label=name, enabled=True, metrics=metrics, cpu_info={"cpu_count": "4"})

    def pbd(self, host: str, sr: str) -> str:
        return self.records.create("PBD", host=host, SR=sr, currently_attached=True)

    def dies(self, host: str) -> None:
        self.records.update("host_metrics", self.records.get("host", host)["metrics"], live=False)

    def vm(self, sr: str, on: str = NULL, **fields: Any) -> str:
        state = "Running" if on != NULL else "Halted"
        vm = self.records.create("VM", power_state=state, resident_on=on, memory_static_max=MEMORY >> 1, **fields)
        vdi = self.records.create("VDI", SR=sr)
        self.records.create("VBD", VM=vm, VDI=vdi, type="Disk", empty=False)
        return vm

    def goes_to(self, call: str, *values: Any) -> str:
        cls, _, name = call.partition(".")
        message = self.records.model.message(cls, name)
        assert message is not None
        return self.routing.member(message, values) or self.a


def test_a_call_about_a_vm_goes_where_it_runs_and_reading_goes_nowhere() -> None:
    pool = ThreeHosts()
    vm = pool.vm(pool.shared, pool.b)
    for call in ("VM.hard_shutdown", "VM.pool_migrate", "VM.migrate_send", "VM.migrate", "VM.suspend"):
        assert pool.goes_to(call, vm) == pool.b
    for call in ("VM.get_record", "VM.set_name_label", "VM.get_possible_hosts", "VM.add_to_other_config"):
        assert pool.goes_to(call, vm) == pool.a
    pool.dies(pool.b)
    assert pool.goes_to("VM.hard_shutdown", vm) == pool.b, "nobody else may say what became of it"
    assert pool.goes_to("VM.power_state_reset", vm) == pool.a


def test_a_vm_is_not_given_up_while_somebody_who_answers_works_on_it() -> None:
    """A Halted VM that is being sent, a hidden one that is being received, and a VM whose sender has died while its
    receiver has a domain of it: were they free, they could be started, and run twice."""
    pool = ThreeHosts()
    nothing: Any = None
    calls = PlacementCalls(pool.records, pool.a, nothing, pool.placement, nothing, nothing, nothing)
    task = pool.records.create("task", resident_on=pool.b, status="pending")
    sent = pool.vm(pool.shared, current_operations={task: "migrate_send"})
    lost = pool.vm(pool.shared, pool.c)
    uuid = pool.records.get("VM", lost)["uuid"]
    hidden = pool.vm(pool.shared, _incoming_uuid=uuid, _receiver=pool.b, _migration="m")
    pool.dies(pool.c)
    for vm in (sent, hidden, lost):
        before = pool.records.get("VM", vm)
        with pytest.raises(OperationNotAllowed, match=pool.b):
            calls.VM_power_state_reset(nothing, vm)
        assert pool.records.get("VM", vm) == before
    pool.dies(pool.b)
    for vm in (sent, lost):
        calls.VM_power_state_reset(nothing, vm)
        record = pool.records.get("VM", vm)
        assert (record["power_state"], record["current_operations"], record["resident_on"]) == ("Halted", {}, NULL)


def test_a_vm_starts_where_it_can_be() -> None:
    pool = ThreeHosts()
    assert pool.goes_to("VM.start", pool.vm(pool.shared)) == pool.a
    assert pool.goes_to("VM.start", pool.vm(pool.of_b)) == pool.b
    assert pool.goes_to("VM.start", pool.vm(pool.shared, affinity=pool.c)) == pool.c
    assert pool.goes_to("VM.start_on", pool.vm(pool.shared), pool.c) == pool.c
    assert pool.goes_to("VM.start", pool.vm(pool.shared, _domain_host=pool.c)) == pool.c, "c builds it already"
    pool.records.update("host", pool.a, enabled=False)
    pool.dies(pool.b)
    vm = pool.vm(pool.shared)
    assert pool.goes_to("VM.start", vm) == pool.c
    assert pool.placement.possible(vm) == [pool.c]
    assert pool.goes_to("VM.start", pool.vm(pool.of_b)) == pool.a, "which says why not"


def test_storage_hosts_and_tasks() -> None:
    pool = ThreeHosts()
    vm = pool.vm(pool.of_b)
    [vbd] = pool.records.get("VM", vm)["VBDs"]
    vdi = pool.records.get("VBD", vbd)["VDI"]
    assert pool.goes_to("SR.scan", pool.of_b) == pool.goes_to("VDI.destroy", vdi) == pool.b
    assert pool.goes_to("VDI.create", {"SR": pool.of_b}) == pool.b
    assert pool.goes_to("VDI.pool_migrate", vdi, pool.shared, {}) == pool.b
    assert pool.goes_to("SR.scan", pool.shared) == pool.a
    assert pool.goes_to("SR.create", pool.c) == pool.goes_to("host.evacuate", pool.c) == pool.c
    assert pool.goes_to("PBD.plug", pool.pbds[pool.c]) == pool.c
    task = pool.records.create("task", resident_on=pool.b)
    for call in ("task.cancel", "task.destroy", "task.set_other_config", "task.add_to_other_config"):
        assert pool.goes_to(call, task) == pool.b
    assert pool.goes_to("task.get_status", task) == pool.a
    assert pool.goes_to("VM.receive", pool.of_b, {}) == pool.a, "who is asked is the receiver"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda pool: pool.records.update("host", pool.b, enabled=False), "HOST_DISABLED"),
        (lambda pool: pool.dies(pool.b), "HOST_OFFLINE"),
        (lambda pool: pool.records.update("host", pool.b, cpu_info={"cpu_count": "1"}), "HOST_NOT_ENOUGH_PCPUS"),
        (lambda pool: pool.records.destroy("PBD", pool.pbds[pool.b]), "VM_REQUIRES_SR"),
    ],
)
def test_what_is_in_the_way_is_named(change: Any, code: str) -> None:
    pool = ThreeHosts()
    vm = pool.vm(pool.shared, pool.a, VCPUs_max=2)
    pool.placement.check(vm, pool.b)
    change(pool)
    with pytest.raises(MigrateError) as refused:
        pool.placement.check(vm, pool.b)
    assert refused.value.failure()[0] == code
