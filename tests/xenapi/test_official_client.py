"""The official library, PyPI's XenAPI: one session migrates while others read what happens by event.from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer

from tests.upstream.two_overlaid import two_overlaid
from tests.xenapi.two_servers import Server, two_servers

Event = dict[str, Any]
ENDED = ("success", "failure", "cancelled")


async def migrate_send(here: Server, there: Server, vm: str, sr: str) -> str:
    """The task's ref. Two sessions, as a client of two servers has; the destination's is over before it begins."""
    vdi_map, vif_map = here.maps(vm, sr, there.network)
    dest = await there.client(lambda x: x.host.migrate_receive(there.host, there.network, {}))
    six = (vm, dest, True, vdi_map, vif_map, {"force": "false"})
    return str(await here.client(lambda x: x.Async.VM.migrate_send(*six)))


def watch(server: Server, classes: list[str], token: str, enough: Callable[[Event], bool]) -> defer.Deferred[Any]:
    """All events from `token` to the first for which `enough` is true."""

    def work(x: Any) -> list[Event]:
        seen: list[Event] = []
        after, deadline = token, time.monotonic() + 60
        while time.monotonic() < deadline:
            got = getattr(x.event, "from")(classes, after, 5.0)
            after = got["token"]
            for event in got["events"]:
                seen.append(event)
                if enough(event):
                    return seen
        raise AssertionError(f"it never came: {seen}")

    return server.client(work)


@pytest.mark.parametrize("servers", [two_servers, two_overlaid])
@pytest.mark.parametrize("cancel", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_migration_is_read_from_events_on_both_sides(tmp_path: Path, cancel: bool, servers: Any) -> None:
    async with servers(tmp_path) as world:
        here, there = world.source, world.destination
        vm = await here.new_vm(await here.new_sr())
        uuid = here.records.get("VM", vm)["uuid"]
        sr = await there.new_sr()
        if cancel:
            here.slow()
        tokens = [server.server.events.token() for server in (here, there)]

        def arrived(event: Event) -> bool:
            # a moved VM appears; one that is given up goes
            return event["operation"] == "del" if cancel else event.get("snapshot", {}).get("uuid") == uuid

        tasks = watch(here, ["task"], tokens[0], lambda e: e["operation"] != "del" and e["snapshot"]["status"] in ENDED)
        vms = watch(there, ["vm"], tokens[1], arrived)
        task = await migrate_send(here, there, vm, sr)
        if cancel:
            await world.until(lambda: here.records.get("task", task)["progress"] > 0.05)
            assert await here.client(lambda x: x.task.get_allowed_operations(task)) == ["cancel"]
            await here.client(lambda x: x.task.cancel(task))

        seen = [event["snapshot"] for event in await tasks if event["ref"] == task]
        progress = [record["progress"] for record in seen]
        assert progress == sorted(progress) and progress[-1] == 1.0
        assert {record["status"] for record in seen[:-1]} <= {"pending"}
        assert seen[-1]["status"] == ("cancelled" if cancel else "success")
        assert seen[-1]["error_info"] == []

        # from the first event on it was hidden, and it had another uuid until it was there
        on_its_way = [e["snapshot"] for e in await vms if e["operation"] != "del" and e["snapshot"]["uuid"] != uuid]
        assert on_its_way
        assert all(record["other_config"]["HideFromXenCenter"] == "true" for record in on_its_way)
        assert all(list(record["current_operations"].values()) == ["import"] for record in on_its_way)
        there_now = await there.client(lambda x: [r["uuid"] for r in x.VM.get_all_records().values()])
        here_now = await here.client(lambda x: [r["uuid"] for r in x.VM.get_all_records().values()])
        assert (here_now, there_now) == (([uuid], []) if cancel else ([], [uuid]))
        await here.client(lambda x: x.task.destroy(task))
        assert task not in await here.client(lambda x: x.task.get_all())
