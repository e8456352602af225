"""Where a VM may be: VM.assert_can_boot_here, VM.get_possible_hosts, VM.pool_migrate, host.enable and disable,
host.evacuate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.migration.engine import Engine
from xapi_migrate.migration.giving_up import GIVEN_UP
from xapi_migrate.migration.host import TaskHandle
from xapi_migrate.store.interfaces import NULL, Record
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.evacuation import Evacuation
from xapi_migrate.toolstack.placement import Placement
from xapi_migrate.toolstack.send_calls import announce
from xapi_migrate.toolstack.sender_checks import SenderChecks
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import Tasks

ON_A_HOST = ("Running", "Paused")
"""Power states in which a VM is on a host, and may go to another one of the pool."""

AskOffer = Callable[[str, str], Awaitable[list[str]]]
"""(host, user) -> the URIs of an offer that this member of the pool makes. HostOffline."""


class PlacementCalls:
    """`host` is this host's ref; `offer` asks another member."""

    def __init__(
        self, records: Records, host: str, checks: SenderChecks, placement: Placement, engine: Engine, tasks: Tasks,
        offer: AskOffer,
    ) -> None:  # fmt: skip
        self._records = records
        self._host = host
        self._checks = checks
        self._placement = placement
        self._engine = engine
        self._offer = offer
        self._evacuation = Evacuation(records, host, placement, self.check_move, self.move, tasks)

    def VM_assert_can_boot_here(self, call: CallContext, self_: str, host: str) -> None:
        self._placement.check(self_, host)

    def VM_get_possible_hosts(self, call: CallContext, vm: str) -> list[str]:
        return self._placement.possible(vm)

    async def VM_pool_migrate(self, call: CallContext, vm: str, host: str, options: dict[str, str]) -> None:
        """To another member, which sees all disks: only memory moves."""
        self.check_move(vm)
        if host == self._host:
            raise OperationNotAllowed(f"The VM {vm} is on that host already.")
        self._placement.check(vm, host)
        record = self._records.get("VM", vm)
        announce(call.task, f"Migrating {record['name_label'] or record['uuid']}", vm, record["resident_on"])
        await self.move(vm, host, call.user, call.task)

    def check_move(self, vm: str) -> None:
        """What is in the VM's own way."""
        self._checks.check_vm(vm, self._records.get("VM", vm), "pool_migrate", ON_A_HOST)

    async def move(self, vm: str, host: str, user: str, task: TaskHandle) -> None:
        """The five phases, the other member being the receiver."""
        uris = await self._offer(host, user)
        vifs = [(vif, self._records.get("VIF", vif)["network"]) for vif in self._records.get("VM", vm)["VIFs"]]
        networks = {vif: network for vif, network in vifs if network != NULL}
        await self._engine.migrate(vm, uris, {}, {}, task, networks, "pool_migrate")

    def VM_power_state_reset(self, call: CallContext, vm: str) -> None:
        """The administrator's word that the VM's host is gone for good, and the VM with it. If that is wrong, a VM that
        is started anew runs twice: so it is refused while the host answers, or another that works on it."""
        record = self._records.get("VM", vm)
        for host in self._concerned(vm, record):
            if self._placement.is_live(host):
                raise OperationNotAllowed(
                    f"The host {host}, which has the VM {vm} or works on it, answers: shut the VM down there, or let "
                    "that end."
                )
        self._records.update(
            "VM", vm, power_state="Halted", resident_on=NULL, domid=-1, current_operations={}, _domain="",
            _domain_host="", **{GIVEN_UP: str(uuid4())},
        )  # fmt: skip
        for vbd in record["VBDs"]:
            self._records.update("VBD", vbd, currently_attached=False)

    def _concerned(self, vm: str, record: Record) -> set[str]:
        """Hosts that have a domain of the VM, build one, move the VM or receive it."""
        hosts = {record["resident_on"], record.get("_domain_host")}
        for task in record["current_operations"]:
            if self._records.has("task", task):
                hosts.add(self._records.get("task", task)["resident_on"])
        for ref in (vm, *self._records.find("VM", _incoming_uuid=record["uuid"])):
            hidden = self._records.get("VM", ref)
            if hidden.get("_incoming_uuid"):
                hosts.add(hidden.get("_receiver"))
        return hosts & set(self._records.refs("host"))

    def host_enable(self, call: CallContext, host: str) -> None:
        self._records.update("host", host, enabled=True)

    def host_disable(self, call: CallContext, host: str, auto_enable: bool) -> None:
        """It takes no VMs until it is enabled, or the daemon begins anew."""
        self._records.update("host", host, enabled=False)

    async def host_evacuate(self, call: CallContext, host: str, network: str, evacuate_batch_size: int) -> None:
        await self._evacuation.evacuate(evacuate_batch_size, call.user, call.task)

    def host_get_vms_which_prevent_evacuation(self, call: CallContext, self_: str) -> dict[str, list[str]]:
        return {vm: error.failure() for vm, error in self._evacuation.plan().in_the_way.items()}

    def host_get_management_interface(self, call: CallContext, host: str) -> str:
        """NULL if it has none."""
        return next(iter(self._records.find("PIF", host=host, management=True)), NULL)
