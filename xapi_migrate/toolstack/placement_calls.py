"""Where a VM may be: VM.assert_can_boot_here, VM.get_possible_hosts, VM.pool_migrate, host.enable and disable,
host.evacuate."""

from __future__ import annotations

from collections.abc import Callable

from xapi_migrate.errors import MigrateError, NotEnoughMemory, OperationNotAllowed
from xapi_migrate.refusals import HostDisabled, NoHostsAvailable, NotEnoughCpus, VmRequiresNetwork, VmRequiresSr
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.networks import Networks
from xapi_migrate.toolstack.sender_checks import SenderChecks
from xapi_migrate.xenapi.calls import CallContext


class PlacementCalls:
    """Of a pool of one host: `host` is its ref, `free_memory` is in bytes."""

    def __init__(
        self, records: Records, host: str, checks: SenderChecks, networks: Networks, free_memory: Callable[[], int]
    ) -> None:
        self._records = records
        self._networks = networks
        self._host = host
        self._checks = checks
        self._free_memory = free_memory

    def VM_assert_can_boot_here(self, call: CallContext, self_: str, host: str) -> None:
        """In xapi's order: the host, its networks, memory and processors, storage."""
        record = self._records.get("VM", self_)
        if not self._records.get("host", host)["enabled"]:
            raise HostDisabled(host)
        for vif in record["VIFs"]:
            network = self._records.get("VIF", vif)["network"]
            pifs = self._records.get("network", network)["PIFs"] if network != NULL else []
            # a network without any interface is internal, and everywhere
            elsewhere = pifs and not any(self._records.get("PIF", pif)["host"] == host for pif in pifs)
            if elsewhere or not self._networks.attachable(network):
                raise VmRequiresNetwork(self_, network)
        if record["resident_on"] != host or record["power_state"] == "Halted":
            free = self._free_memory()
            if record["memory_static_max"] > free:
                raise NotEnoughMemory(record["memory_static_max"], free)
        cpus = int(self._records.get("host", host)["cpu_info"].get("cpu_count", "1"))
        if record["VCPUs_max"] > cpus and record["platform"].get("vcpu-unrestricted") not in ("true", "1"):
            raise NotEnoughCpus(record["VCPUs_max"], cpus)
        for _, vdi in self._checks.disks(self_):
            sr = self._records.get("VDI", vdi)["SR"]
            if not self._records.find("PBD", SR=sr, host=host, currently_attached=True):
                raise VmRequiresSr(self_, sr)

    def VM_get_possible_hosts(self, call: CallContext, vm: str) -> list[str]:
        found = []
        for host in self._records.refs("host"):
            try:
                self.VM_assert_can_boot_here(call, vm, host)
            except MigrateError:
                continue
            found.append(host)
        return found

    def VM_pool_migrate(self, call: CallContext, vm: str, host: str, options: dict[str, str]) -> None:
        record = self._records.get("VM", vm)
        self._checks.check_vm(vm, record, "pool_migrate")
        raise OperationNotAllowed(f"The VM {vm} is on that host already, and this pool has no other.")

    def host_enable(self, call: CallContext, host: str) -> None:
        self._records.update("host", host, enabled=True)

    def host_disable(self, call: CallContext, host: str, auto_enable: bool) -> None:
        """It offers to take no VMs until it is enabled, or the daemon begins anew."""
        self._records.update("host", host, enabled=False)

    def host_evacuate(self, call: CallContext, host: str, network: str, evacuate_batch_size: int) -> None:
        for vm in self._records.find("VM", resident_on=host):
            if not self._records.get("VM", vm)["is_control_domain"]:
                raise NoHostsAvailable()

    def host_get_vms_which_prevent_evacuation(self, call: CallContext, self_: str) -> dict[str, list[str]]:
        vms = self._records.find("VM", resident_on=self_)
        return {vm: ["NO_HOSTS_AVAILABLE"] for vm in vms if not self._records.get("VM", vm)["is_control_domain"]}

    def host_get_management_interface(self, call: CallContext, host: str) -> str:
        """NULL if it has none."""
        return next(iter(self._records.find("PIF", host=host, management=True)), NULL)
