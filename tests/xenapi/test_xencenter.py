"""XenCenter's calls in its order, to a server that presents itself as each version wants it. The program itself cannot
run here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import threads

from tests.xenapi.two_servers import PASSWORD, USER, Server, two_servers
from tests.xenapi.xencenter import FIELDS, OLD_CLASSES, Client, JsonClient, Refused, XmlClient, check_fields
from xapi_migrate.toolstack.profile import PROFILES

Cache = dict[str, dict[str, dict[str, Any]]]


@attrs.define
class Version:
    """One XenCenter: its profile here, its wire, its log-in arguments, the API version that it must see. `begins` is
    the wire by which it logs in and asks for that version, where it changes over then."""

    profile: str
    client: Callable[[int], Client]
    login: tuple[str, ...]
    api: tuple[int, int]
    legacy: bool = False
    begins: Callable[[int], Client] | None = None


VERSIONS = [
    Version("xencenter-6.2", XmlClient, ("2.0",), (1, 10)),
    Version("legacy-events", XmlClient, ("2.0",), (1, 9), legacy=True),
    Version("xencenter-7.0", XmlClient, ("2.5", "XenCenter 7.0.0"), (2, 5)),
    Version("xencenter-8.2", JsonClient, ("2.15", "XenCenter 8.2.3"), (2, 15), begins=XmlClient),
    Version("xencenter-2023", JsonClient, ("2.20", "XenCenter 2023.1"), (2, 23)),
]


class Connected:
    """A connection as far as its cache is full; `wires` are its TCP connections."""

    def __init__(self, version: Version, server: Server) -> None:
        self.version, self.server = version, server
        self.wires: list[Client] = []
        main = self.wire(version.begins)
        self.session: str = main.call("session.login_with_password", USER, PASSWORD, *version.login)
        call = self.call
        [(self.pool, pool)] = call("pool.get_all_records").items()
        check_fields("pool", pool)
        self.host: str = pool["master"]
        host = call("host.get_record", self.host)
        check_fields("host", host)
        assert (int(host["API_version_major"]), int(host["API_version_minor"])) == version.api
        self.check_host(host)
        if version.begins is not None:
            self.wires.insert(0, self.wire())
            self.wires.pop()
        assert call("session.get_is_local_superuser", self.session) is True
        if not version.legacy:
            if version.client is JsonClient:
                assert call("session.get_rbac_permissions", self.session) == []
            for record in call("role.get_all_records").values():
                check_fields("role", record)
        self.cache: Cache = {}
        self.token = ""
        if version.legacy:
            assert call("event.register", ["*"]) == ""
            for cls in OLD_CLASSES:
                self.cache[cls.lower()] = call(f"{cls}.get_all_records")
        else:
            self.follow(30.0)
        assert call("host.get_servertime", self.host)

    def check_host(self, host: dict[str, Any]) -> None:
        for name in ("connection", "storage_xen_motion", "dmc"):
            assert host["license_params"][f"restrict_{name}"] == "false"
        software = host["software_version"]
        assert int(software["xencenter_min"]) <= 11 and int(software["xencenter_max"]) >= 27
        assert all(part.isdecimal() for part in software["platform_version"].split("."))
        platform = [int(part) for part in software["platform_version"].split(".")]
        assert self.version.legacy or platform >= [1, 5, 50]
        brands = {"xencenter-8.2": "Citrix Hypervisor", "xencenter-2023": "XenServer"}
        assert software["product_brand"] == brands.get(self.version.profile, "XenServer")
        assert self.version.profile != "xencenter-2023" or platform >= [2, 9, 50]

    def wire(self, kind: Callable[[int], Client] | None = None) -> Client:
        self.wires.append((kind or self.version.client)(self.server.port))
        return self.wires[-1]

    def call(self, method: str, *params: Any) -> Any:
        return self.wires[0].call(method, self.session, *params)

    def follow(self, timeout: float, wire: Client | None = None) -> int:
        """One turn of the event loop; how many events came."""
        wire = wire or self.wires[0]
        if self.version.legacy:
            events = wire.call("event.next", self.session)
            assert events
        else:
            got = wire.call("event.from", self.session, ["*"], self.token, timeout)
            assert type(got["valid_ref_counts"]["task"]) is int
            self.token, events = got["token"], got["events"]
        for event in events:
            objects = self.cache.setdefault(event["class"].lower(), {})
            if event["operation"] == "del":
                objects.pop(event["ref"], None)
            else:
                objects[event["ref"]] = event["snapshot"]
        return len(events)

    def check_cache(self, *classes: str) -> None:
        """Every object of these classes has what is read of it, and there is one at least."""
        for cls in classes:
            found = self.cache[cls.lower()]
            assert found, f"no {cls} is there"
            for record in found.values():
                check_fields(cls, record)

    def management_network(self) -> str:
        return str(next(pif["network"] for pif in self.cache["pif"].values() if pif["management"]))

    def close(self) -> None:
        for wire in self.wires:
            wire.close()


@contextmanager
def connected(version: Version, server: Server) -> Iterator[Connected]:
    one = Connected(version, server)
    try:
        yield one
    finally:
        one.close()


def begin_migration(here: Connected, there: Connected, vm: str) -> str:
    """The wizard: look at the candidate, choose storage and networks, Finish. The task's ref."""
    record = here.cache["vm"][vm]
    assert "migrate_send" in record["allowed_operations"]
    assert here.call("VM.assert_can_boot_here", vm, here.host) == ""
    network = there.management_network()
    dest = there.call("host.migrate_receive", there.host, network, {})
    assert dest and all(type(value) is str for value in dest.values())
    here.call("VM.assert_can_migrate", vm, dest, True, {}, {}, {})
    attached = [pbd["SR"] for pbd in there.cache["pbd"].values() if pbd["currently_attached"]]
    backends = {sm["type"]: sm["capabilities"] for sm in there.cache["sm"].values()}
    [sr] = [sr for sr in attached if {"VDI_SNAPSHOT", "VDI_MIRROR"} <= set(backends[there.cache["sr"][sr]["type"]])]
    vdi_map = {here.cache["vbd"][vbd]["VDI"]: sr for vbd in record["VBDs"]}
    vif_map = dict.fromkeys(record["VIFs"], network)
    dest = there.call("host.migrate_receive", there.host, network, {})
    task: str = here.call("Async.VM.migrate_send", vm, dest, True, vdi_map, vif_map, {})
    if here.version.client is JsonClient:
        here.call("task.remove_from_other_config", task, "XenCenterUUID")
        here.call("task.remove_from_other_config", task, "applies_to")
    here.call("task.add_to_other_config", task, "XenCenterUUID", "5f6e")
    here.call("task.add_to_other_config", task, "applies_to", f"{vm},{here.host}")
    return task


def poll(here: Connected, task: str) -> dict[str, Any]:
    """The task's record when it has ended."""
    deadline = time.monotonic() + 60
    while True:
        record: dict[str, Any] = here.call("task.get_record", task)
        check_fields("task", record)
        if record["status"] not in ("pending", "cancelling"):
            return record
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("version", VERSIONS, ids=[version.profile for version in VERSIONS])
@pytest_twisted.ensureDeferred
async def test_it_connects_migrates_follows_and_leaves(tmp_path: Path, version: Version) -> None:
    async with two_servers(tmp_path, PROFILES[version.profile]) as world:
        vm = await world.source.new_vm(await world.source.new_sr())
        uuid = world.source.records.get("VM", vm)["uuid"]
        await world.destination.new_sr()

        def work() -> None:
            with connected(version, world.source) as here, connected(version, world.destination) as there:
                here.check_cache(*(set(FIELDS) - {"task"}))
                there.check_cache("pool", "host", "host_metrics", "PIF", "network", "PBD", "SM", "SR")
                console = next(iter(here.cache["console"].values()))
                assert console["VM"] == vm and console["location"].startswith("https://127.0.0.1/")
                task = begin_migration(here, there, vm)
                record = poll(here, task)
                assert (record["status"], record["error_info"]) == ("success", [])
                moved = record["result"].removeprefix("<value>").removesuffix("</value>")
                assert here.call("task.destroy", task) == ""
                # the caches follow: gone here, there under the same uuid
                deadline = time.monotonic() + 60
                while vm in here.cache["vm"] or moved not in there.cache.get("vm", {}):
                    here.follow(0.5)
                    there.follow(0.5)
                    assert time.monotonic() < deadline
                while (arrived := there.cache["vm"][moved])["power_state"] != "Running":
                    there.follow(0.5)
                    assert time.monotonic() < deadline
                assert arrived["uuid"] == uuid and arrived["resident_on"] == there.host
                while here.cache["console"] or not there.cache.get("console"):
                    if here.cache["console"]:
                        here.follow(0.5)
                    if not there.cache.get("console"):
                        there.follow(0.5)
                there.check_cache("VM", "VDI", "VBD", "VIF", "console", "VM_metrics")

        await threads.deferToThread(work)


@pytest.mark.parametrize("version", VERSIONS, ids=[version.profile for version in VERSIONS])
@pytest_twisted.ensureDeferred
async def test_it_cancels(tmp_path: Path, version: Version) -> None:
    async with two_servers(tmp_path, PROFILES[version.profile]) as world:
        vm = await world.source.new_vm(await world.source.new_sr())
        await world.destination.new_sr()
        world.source.slow()

        def work() -> None:
            with connected(version, world.source) as here, connected(version, world.destination) as there:
                task = begin_migration(here, there, vm)
                deadline = time.monotonic() + 60
                while here.call("task.get_record", task)["progress"] <= 0.05:
                    assert time.monotonic() < deadline
                assert here.call("task.get_allowed_operations", task) == ["cancel"]
                assert here.call("task.cancel", task) == ""
                record = poll(here, task)
                assert (record["status"], record["error_info"]) == ("cancelled", [])
                here.call("task.destroy", task)
                assert here.call("VM.get_power_state", vm) == "Running"
                with pytest.raises(Refused) as refused:
                    here.call("task.get_record", task)
                assert refused.value.args[0] == ["HANDLE_INVALID", "task", task]

        await threads.deferToThread(work)


@pytest.mark.parametrize("version", VERSIONS, ids=[version.profile for version in VERSIONS])
@pytest_twisted.ensureDeferred
async def test_its_log_out_wakes_what_waits_for_events(tmp_path: Path, version: Version) -> None:
    async with two_servers(tmp_path, PROFILES[version.profile]) as world:

        def work() -> None:
            with connected(version, world.source) as here:
                while here.cache["pool"][here.pool]["name_label"] != "new":
                    here.call("pool.set_name_label", here.pool, "new")
                    here.follow(5.0)
                wire, said = here.wire(), []

                def wait() -> None:
                    try:
                        while True:
                            here.follow(30.0, wire)
                    except Refused as refused:
                        said.append(refused.args[0])

                waiting = threading.Thread(target=wait)
                waiting.start()
                time.sleep(0.3)
                here.call("session.logout")
                waiting.join(60)
                assert said == [["SESSION_INVALID", here.session]]

        await threads.deferToThread(work)


@pytest_twisted.ensureDeferred
async def test_the_old_events_are_kept_by_the_server_for_each_session(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        records = world.source.records
        [pool] = records.refs("pool")

        def work(api: Any) -> None:
            with pytest.raises(Exception, match="SESSION_NOT_REGISTERED"):
                api.event.next()
            api.event.register(["VM", "pool"])
            api.pool.set_name_label(pool, "a")
            api.pool.set_name_label(pool, "b")
            network = api.network.create({"name_label": "not asked for"})
            [event] = api.event.next()
            assert (event["class"], event["operation"], event["ref"]) == ("pool", "mod", pool)
            assert event["snapshot"]["name_label"] == "b"
            assert event["obj_uuid"] == event["snapshot"]["uuid"]
            assert int(event["id"]) <= int(api.event.get_current_id())
            api.event.register(["network"])
            api.network.destroy(network)
            [event] = api.event.next()
            assert (event["class"], event["operation"], event["ref"]) == ("network", "del", network)
            assert "snapshot" not in event
            api.event.unregister(["network", "pool", "vm"])
            with pytest.raises(Exception, match="SESSION_NOT_REGISTERED"):
                api.event.next()
            with pytest.raises(Exception, match="EVENT_SUBSCRIPTION_PARSE_FAILURE"):
                api.event.register(["vm/"])

        await world.source.client(work)
