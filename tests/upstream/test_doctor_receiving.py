"""What doctor and force-settle know of VMs that a toolstack was to receive: what waits there, what nothing says of, and
what only that toolstack could remove."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import reactor, task, threads

from tests.upstream.beside import Beside, beside
from tests.upstream.overlaid import USERS
from tests.upstream.receiver import World, crash_at, world
from tests.upstream.receiver import session_of as someone
from tests.upstream.test_doctor import ask
from xapi_migrate.migration.journal import Mark
from xapi_migrate.upstream.abandoned import Abandoned
from xapi_migrate.upstream.arrival import Arrival
from xapi_migrate.upstream.lease import Lease
from xapi_migrate.upstream.notes import Notes


def session_of(here: Beside) -> Any:
    return someone(here, "root")


def command(here: Beside, *arguments: str) -> str:
    """What xapi-migrate says to who runs it against the daemon beside the toolstack."""
    argv = [sys.executable, "-m", "xapi_migrate.cli", *arguments, "--url", here.overlaid.url]
    environment = {**os.environ, "XAPI_MIGRATE_USER": "root", "XAPI_MIGRATE_PASSWORD": USERS["root"][0]}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def told(session: Any, kind: str = "arrival") -> list[dict[str, str]]:
    return [one for one in ask(session, "leftovers") if one["kind"] == kind]


async def left(w: World, here: Beside, moves: bool) -> None:
    """The session ends in the middle, so the upstream cannot be told what becomes of the VM."""
    mark = Mark.COMMITTED if moves else Mark.PREPARED
    w.kept.journals.after = lambda journal, one: w.upstream.end_sessions() if one is mark else None
    task = await w.migrate(await w.offer(here))
    assert await w.over(task) == ("success" if moves else "failure")
    await w.until(lambda: here.arrivals.waiting, "it does not wait")


@pytest.mark.parametrize("moves", [True, False])
@pytest_twisted.ensureDeferred
async def test_what_waits_at_the_toolstack_is_told_and_settled_by_who_asks(tmp_path: Path, moves: bool) -> None:
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        await left(w, here, moves)
        vdis = [one["uuid"] for one in w.upstream.records("VDI").values()]

        def work() -> None:
            session = session_of(here)
            [one] = told(session)
            assert w.uuid in one["why"] and "SESSION_INVALID" in one["why"] and "OpaqueRef" not in one["why"]
            assert one["why"].startswith(f"VM {w.uuid} " + ("has been" if moves else "was not") + " received")
            assert ("destroys" not in one["remedy"]) == moves
            assert len(vdis) == 2 and all(f"VDI {uuid}" in one["remedy"] for uuid in vdis)
            assert (f"the template {w.uuid}" in one["remedy"]) == moves
            name = f"arrival:{one['name']}"
            done = ask(session, "remove_leftovers", names=json.dumps([name]))
            assert done == {"removed": [name], "failed": []}
            assert told(session) == []

        w.locked_if_there()
        await threads.deferToThread(work)
        await w.nothing_here(here)
        if moves:
            w.arrived()
        else:
            w.stayed()
            w.nothing_there()


@pytest_twisted.ensureDeferred
async def test_what_only_the_toolstack_can_remove_is_said_to_be_so_while_it_is_away(tmp_path: Path) -> None:
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        await left(w, here, moves=False)
        session = await threads.deferToThread(session_of, here)
        w.upstream.cut()
        receives = next(one for one in here.elsewhere if one.receiving)
        [one] = await receives.left(session.handle)
        assert "nothing without the toolstack" in one.remedy and "has not answered" in one.remedy
        with pytest.raises(Exception, match="has not answered"):
            await one.remove()
        assert len(here.arrivals.known) == 1
        await w.upstream.comes_back()
        assert await threads.deferToThread(told, session)


@pytest_twisted.ensureDeferred
async def test_what_is_under_way_or_settled_is_not_left_behind(tmp_path: Path) -> None:
    async with world(tmp_path) as w, beside(w.upstream.toolstack, w.kept) as here:
        session = await threads.deferToThread(session_of, here)
        receives = next(one for one in here.elsewhere if one.receiving)
        seen: list[Any] = []

        async def look() -> None:
            seen.append(await receives.left(session.handle))

        uris = await w.offer(here)
        moving = await w.migrate(uris)
        while w.task(moving)["status"] == "pending":
            await look()
            await task.deferLater(reactor, 0.01)  # type: ignore[arg-type]
        await look()
        assert await w.over(moving) == "success"
        assert len(seen) > 1 and not any(seen)


async def in_doubt(w: World) -> None:
    """The journal is lost after the import and before anything says that it was committed."""
    daemons: list[Beside] = []
    crash_at(w.kept, lambda: daemons[-1], Mark.COMMITTED, "before")
    async with beside(w.upstream.toolstack, w.kept) as here:
        daemons.append(here)
        await w.migrate(await w.offer(here))
        await w.until(lambda: here.engine._stopped)
    w.kept.journals = type(w.kept.journals)()


@pytest.mark.parametrize("outcome", ["moved", "stays"])
@pytest_twisted.ensureDeferred
async def test_somebody_says_whether_it_was_received(tmp_path: Path, outcome: str) -> None:
    async with world(tmp_path) as w:
        await in_doubt(w)
        async with beside(w.upstream.toolstack, w.kept) as here:

            def work() -> None:
                session = session_of(here)
                assert ask(session, "in_doubt") == ask(session, "in_doubt_receiving") == [w.uuid]
                assert told(session) == []
                with pytest.raises(XenAPI.Failure, match="INVALID_VALUE"):
                    ask(session, "force_settle", vm=w.uuid, outcome="perhaps")
                assert f"VM {w.uuid} is in doubt: nothing says whether it was received here." in command(here, "doctor")
                said = command(here, "force-settle", w.uuid, "--outcome", outcome, "--yes")
                assert ("there are two of it" in said, "no copy of it is left" in said) == (
                    outcome == "moved",
                    outcome == "stays",
                )
                assert f"VM {w.uuid} is {'the toolstack' if outcome == 'moved' else 'not here'}" in said
                assert ask(session, "in_doubt") == []
                for one in told(session, "VDI"):
                    assert one["remedy"] == "its record here goes; the image is the toolstack's"
                names = [f"{one['kind']}:{one['name']}" for one in ask(session, "leftovers")]
                assert {name.partition(":")[0] for name in names} >= {"VM", "VDI"}
                assert ask(session, "remove_leftovers", names=json.dumps(names))["failed"] == []
                assert ask(session, "leftovers") == []

            w.locked_if_there()
            await threads.deferToThread(work)
            await w.nothing_here(here)
            if outcome == "moved":
                w.arrived()
            else:
                w.nothing_there()


@pytest_twisted.ensureDeferred
async def test_who_stands_beside_no_toolstack_any_more_can_only_forget(tmp_path: Path) -> None:
    arrival = Arrival("11", "u1", "OpaqueRef:secret", [], {}, "given up")
    lease = Lease("22", "OpaqueRef:vm", "OpaqueRef:secret", [], "moving", uuid="u2")
    for folder, note in ((tmp_path / "arrivals", arrival), (tmp_path / "upstream", lease)):
        notes: Notes[Any] = Notes(folder, type(note))
        await notes.load()
        await notes.save(note)
    (tmp_path / "arrivals/33.json").write_text("[" * 100_000)
    abandoned = Abandoned(tmp_path)
    found = await abandoned.left("")
    assert [f"{one.kind}:{one.name}" for one in found] == ["arrival:11", "lock:u2", "note:arrivals/33.json"]
    assert "xapi_migrate_arrival=11" in found[0].remedy and "u1" in found[0].why
    assert not any("secret" in one.why + one.remedy for one in found)
    for one in found:
        assert "only what is noted here goes" in one.remedy
        await one.remove()
    assert await abandoned.left("") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert await Abandoned(tmp_path / "never").left("") == []


@pytest_twisted.ensureDeferred
async def test_a_note_that_cannot_be_read_is_told_and_a_draft_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for folder in (w.kept.folder / "arrivals", w.kept.folder / "upstream"):
            folder.mkdir(parents=True)
            (folder / "44.json").write_text("{}")
            (folder / "55.new").write_text("{")
        async with beside(w.upstream.toolstack, w.kept) as here:

            def work() -> None:
                session = session_of(here)
                names = [one["name"] for one in told(session, "note")]
                assert sorted(names) == ["arrivals/44.json", "upstream/44.json"]
                done = ask(session, "remove_leftovers", names=json.dumps([f"note:{name}" for name in names]))
                assert len(done["removed"]) == 2 and ask(session, "leftovers") == []

            await threads.deferToThread(work)
        assert [path.name for path in w.kept.folder.rglob("*.json")] == []
        assert [path.name for path in w.kept.folder.rglob("*.new")] == []
