"""The calls by which today's clients migrate, on the engine of VM.receive and VM.migrate: host.migrate_receive,
VM.assert_can_migrate, VM.migrate_send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from twisted.internet import defer

from xapi_migrate.errors import HandleInvalid, InvalidValue, MigrateError, UriInvalid
from xapi_migrate.migration.claims import Claims
from xapi_migrate.migration.interfaces import PROTOCOL_VERSION, IPeer
from xapi_migrate.migration.outgoing import is_on
from xapi_migrate.refusals import HostCannotAttachNetwork, InterfaceHasNoIp, PifHasNoConfiguration
from xapi_migrate.sm.interfaces import ISR
from xapi_migrate.store.interfaces import NULL, IRecords
from xapi_migrate.together import started, together
from xapi_migrate.toolstack.destination import About, Place, destination_map, read_destination
from xapi_migrate.toolstack.motion import StorageMotion
from xapi_migrate.toolstack.networks import Networks
from xapi_migrate.toolstack.sender_checks import SenderChecks, Wish
from xapi_migrate.uris.offer import parse
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.tasks import Task

STAT_SECONDS = 2.0
"""An SR that does not tell its free space within this time is offered without it."""


class SendingEngine(Protocol):
    """What these calls need of the engine."""

    def receive(self, sr: str, options: dict[str, str], user: str) -> Awaitable[list[str]]:
        """An offer's URIs."""

    def migrate(
        self, vm: str, uris: list[str], vdi_to_sr: dict[str, str], options: dict[str, str], task: Task,
        vif_to_network: dict[str, str] | None = None,
    ) -> Awaitable[str]:  # fmt: skip
        """The VM's ref when it has moved."""


class Receiver:
    """What this host says of itself to a sender. `sr` finds an attached SR, `stream` names the form of its hypervisor's
    memory streams, `claims` knows what memory and space are left."""

    def __init__(
        self, records: IRecords, host: str, sr: Callable[[str], ISR], networks: Networks, stream: Callable[[], str],
        claims: Claims, clock: Any,
    ) -> None:  # fmt: skip
        self.host = host
        self._records = records
        self._sr = sr
        self._networks = networks
        self._stream = stream
        self._claims = claims
        self._clock = clock

    def address(self, network: str) -> str:
        """Of this host's interface on a network. HostCannotAttachNetwork, PifHasNoConfiguration, InterfaceHasNoIp."""
        pifs = self._records.find("PIF", host=self.host, network=network)
        if not pifs:
            raise HostCannotAttachNetwork(self.host, network)
        record = self._records.get("PIF", pifs[0])
        if record["ip_configuration_mode"] == "None":
            raise PifHasNoConfiguration(pifs[0])
        if not record["IP"]:
            raise InterfaceHasNoIp(pifs[0])
        return str(record["IP"])

    async def about(self) -> About:
        """What could be taken now."""
        host, srs = self._records.get("host", self.host), self._records.refs("SR")
        networks = self._records.refs("network")
        places = await together(*(self._place(sr) for sr in srs))
        return About(
            protocol=PROTOCOL_VERSION, enabled=host["enabled"], cpus=int(host["cpu_info"].get("cpu_count", "1")),
            memory_free=self._claims.memory(), stream=self._stream(), srs=dict(zip(srs, places, strict=True)),
            networks=tuple(networks),
            unattachable=tuple(network for network in networks if not self._networks.attachable(network)),
        )  # fmt: skip

    async def _place(self, ref: str) -> Place:
        uuid = str(self._records.get("SR", ref)["uuid"])
        try:
            sr = self._sr(ref)
        except MigrateError:
            return Place(uuid, attached=False)
        asked = started(self._claims.space(ref, sr))
        asked.addTimeout(STAT_SECONDS, self._clock)
        try:
            return Place(uuid, attached=True, free=await asked)
        except (MigrateError, OSError, defer.TimeoutError):
            return Place(uuid, attached=True)


class SendCalls:
    """`peers` makes the client for a list of URIs."""

    def __init__(
        self, records: IRecords, engine: SendingEngine, receiver: Receiver, checks: SenderChecks,
        peers: Callable[[list[str]], IPeer], motion: StorageMotion,
    ) -> None:  # fmt: skip
        self._records = records
        self._motion = motion
        self._engine = engine
        self._receiver = receiver
        self._checks = checks
        self._peers = peers

    async def host_migrate_receive(
        self, call: CallContext, host: str, network: str, options: dict[str, str]
    ) -> dict[str, str]:
        """Clients call it for each host that might do: it makes an offer, which is an entry in a table and a timer."""
        if host != self._receiver.host:
            raise HandleInvalid("host", host)
        address = self._receiver.address(network)
        about = await self._receiver.about()
        uris = await self._engine.receive(NULL, {}, call.user)
        return destination_map(host, address, _on_network_first(uris, address), about)

    async def VM_assert_can_migrate(
        self, call: CallContext, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
        vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str],
    ) -> None:  # fmt: skip
        wish = self._wish(vm, dest, vdi_map, vif_map, options, complete=False)
        self._checks.check(wish)
        if wish.destination.host == self._receiver.host:
            return  # storage motion: the VM stays, its disks go to other SRs
        peer = self._peers(list(wish.destination.uris))
        try:
            await peer.connect()  # step 1.5: the receiver is asked for a sign of life, no more
        finally:
            peer.close()

    async def VM_migrate_send(
        self, call: CallContext, vm: str, dest: dict[str, str], live: bool, vdi_map: dict[str, str],
        vif_map: dict[str, str], options: dict[str, str], vgpu_map: dict[str, str], vdi_format_map: dict[str, str],
    ) -> str:  # fmt: skip
        wish = self._wish(vm, dest, vdi_map, vif_map, options, complete=True)
        self._checks.check(wish)
        record = self._records.get("VM", vm)
        name = record["name_label"] or record["uuid"]
        announce(call.task, f"{'Copying' if wish.copy else 'Migrating'} {name}", vm, record["resident_on"])
        if wish.destination.host == self._receiver.host:
            await self._motion.move_all(vm, dict(vdi_map), call.task)
            return vm
        chosen = {"copy": "true"} if wish.copy else {}
        uris = list(wish.destination.uris)
        return await self._engine.migrate(vm, uris, self._checks.moving(wish), chosen, call.task, dict(wish.vif_map))

    def _wish(
        self, vm: str, dest: Mapping[str, str], vdi_map: Mapping[str, str], vif_map: Mapping[str, str],
        options: Mapping[str, str], complete: bool,
    ) -> Wish:  # fmt: skip
        """Options that are not known are without effect, as clients expect: each sends some of its own."""
        destination = read_destination(dest)
        for uri in destination.uris:
            try:
                parse(uri)
            except UriInvalid as wrong:
                raise InvalidValue("dest:xapi_migrate", wrong.uri) from None
        copy = is_on(options, "copy")
        if not copy and destination.host in self._records.refs("host") and destination.host != self._receiver.host:
            vdi_map = {**self._seen_there(vm, destination.host), **vdi_map}
            vif_map = {**self._networks_of(vm), **vif_map}
        return Wish(vm, destination, vdi_map, vif_map, copy, complete)

    def _seen_there(self, vm: str, host: str) -> dict[str, str]:
        """Within a pool what is not mapped stays where it is, if the other member sees that too."""
        srs = {vdi: self._records.get("VDI", vdi)["SR"] for vdi in self._checks.images(vm)}
        there = {self._records.get("PBD", pbd)["SR"]
                 for pbd in self._records.find("PBD", host=host, currently_attached=True)}  # fmt: skip
        return {vdi: sr for vdi, sr in srs.items() if sr in there}

    def _networks_of(self, vm: str) -> dict[str, str]:
        vifs = {vif: self._records.get("VIF", vif)["network"] for vif in self._records.get("VM", vm)["VIFs"]}
        return {vif: network for vif, network in vifs.items() if network != NULL}


def announce(task: Task, title: str, vm: str, host: str) -> None:
    """By these two keys XenCenter shows the progress of a migration that another client began."""
    task.set_other("XenCenterMeddlingActionTitle", title)
    task.set_other("applies_to", ",".join(ref for ref in (vm, host) if ref != NULL))


def _on_network_first(uris: list[str], address: str) -> list[str]:
    """The receiver's order of schemes stays; among the URIs of one scheme those on the chosen network come first."""
    schemes = list(dict.fromkeys(uri.partition(":")[0] for uri in uris))
    return sorted(uris, key=lambda uri: (schemes.index(uri.partition(":")[0]), parse(uri).host != address))
