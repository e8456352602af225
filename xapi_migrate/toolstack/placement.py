"""Where a VM could be: which hosts are alive, enabled, and have the storage, networks, memory and processors for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from xapi_migrate.errors import MigrateError, NotEnoughMemory
from xapi_migrate.refusals import (
    HostDisabled,
    HostOffline,
    NoHostsAvailable,
    NotEnoughCpus,
    VmRequiresNetwork,
    VmRequiresSr,
)
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.networks import Networks


class Placement:
    """`host` is this host's ref; `free_memory`, in bytes, and `networks` are its own. Of other members the records are
    looked at: what they really have they say themselves when a VM comes."""

    def __init__(self, records: Records, host: str, networks: Networks, free_memory: Callable[[], int]) -> None:
        self._records = records
        self._host = host
        self._networks = networks
        self._free_memory = free_memory

    def is_live(self, host: str) -> bool:
        if host == self._host:
            return True
        metrics = self._records.get("host", host)["metrics"]
        return metrics != NULL and bool(self._records.get("host_metrics", metrics)["live"])

    def free_memory(self, host: str) -> int:
        if host == self._host:
            return self._free_memory()
        metrics = self._records.get("host", host)["metrics"]
        return int(self._records.get("host_metrics", metrics)["memory_free"]) if metrics != NULL else 0

    def srs_of(self, vm: str) -> list[str]:
        """The SRs that hold the VM's disks, and its memory where it is Suspended."""
        record = self._records.get("VM", vm)
        vdis = [self._records.get("VBD", vbd) for vbd in record["VBDs"]]
        refs = [vbd["VDI"] for vbd in vdis if vbd["type"] == "Disk" and not vbd["empty"]] + [record["suspend_VDI"]]
        return list(dict.fromkeys(self._records.get("VDI", vdi)["SR"] for vdi in refs if vdi != NULL))

    def sees(self, host: str, sr: str) -> bool:
        """Whether the SR is attached there."""
        return bool(self._records.find("PBD", SR=sr, host=host, currently_attached=True))

    def who_sees(self, srs: Iterable[str], first: str) -> str:
        """A live host that sees them all, `first` before others; "" if there is none."""
        wanted = list(srs)
        for host in self._ordered(first):
            if self.is_live(host) and all(self.sees(host, sr) for sr in wanted):
                return host
        return ""

    def _ordered(self, first: str) -> list[str]:
        hosts = self._records.refs("host")
        return [first, *(host for host in hosts if host != first)] if first else hosts

    def check(self, vm: str, host: str) -> None:
        """In xapi's order: the host, its networks, memory and processors, storage. The first that is in the way."""
        record = self._records.get("VM", vm)
        if not self._records.get("host", host)["enabled"]:
            raise HostDisabled(host)
        if not self.is_live(host):
            raise HostOffline(host)
        for vif in record["VIFs"]:
            network = self._records.get("VIF", vif)["network"]
            pifs = self._records.get("network", network)["PIFs"] if network != NULL else []
            # a network without any interface is internal, and everywhere
            elsewhere = pifs and not any(self._records.get("PIF", pif)["host"] == host for pif in pifs)
            if elsewhere or (host == self._host and not self._networks.attachable(network)):
                raise VmRequiresNetwork(vm, network)
        if record["resident_on"] != host or record["power_state"] == "Halted":
            free = self.free_memory(host)
            if record["memory_static_max"] > free:
                raise NotEnoughMemory(record["memory_static_max"], free)
        cpus = int(self._records.get("host", host)["cpu_info"].get("cpu_count", "1"))
        if record["VCPUs_max"] > cpus and record["platform"].get("vcpu-unrestricted") not in ("true", "1"):
            raise NotEnoughCpus(record["VCPUs_max"], cpus)
        for sr in self.srs_of(vm):
            if not self.sees(host, sr):
                raise VmRequiresSr(vm, sr)

    def possible(self, vm: str, hosts: Sequence[str] | None = None) -> list[str]:
        """The hosts where `check` finds nothing."""
        found = []
        for host in self._records.refs("host") if hosts is None else hosts:
            try:
                self.check(vm, host)
            except MigrateError:
                continue
            found.append(host)
        return found

    def choose(self, vm: str, first: str = "") -> str:
        """The host where a VM is to start: `first` if it can be there, else its affinity, else the one with the most
        free memory. NoHostsAvailable."""
        possible = self.possible(vm)
        if not possible:
            raise NoHostsAvailable()
        for wanted in (self._records.get("VM", vm)["affinity"], first):
            if wanted in possible:
                return str(wanted)
        return max(possible, key=self.free_memory)
