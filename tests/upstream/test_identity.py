"""One log-in, at the upstream: its sessions are ours, its roles too, and a log-out ends both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
import XenAPI
from twisted.internet import threads
from twisted.internet.task import Clock

from tests.upstream.overlaid import USERS, SteeredMoves, overlaid
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.test_pass_through import Canned
from tests.upstream.test_upstream_away import ask
from tests.wire.raw import post, xml
from xapi_migrate.errors import RemoteError, SessionInvalid
from xapi_migrate.store.records import Records
from xapi_migrate.upstream.identity import BELIEVED, Identity, VouchedSessions
from xapi_migrate.upstream.refusals import NotPermitted, UpstreamSilent
from xapi_migrate.xenapi.own_calls import data_model


@pytest.fixture
def xapi() -> Iterator[SimulatedXapi]:
    with SimulatedXapi(USERS) as running:
        yield running


def receive(session: Any) -> list[str]:
    return list(session.xenapi.VM.receive("OpaqueRef:sr", {}))


@pytest.mark.parametrize("user", ["root", "admin"])
@pytest_twisted.ensureDeferred
async def test_our_calls_act_for_the_upstreams_user(xapi: SimulatedXapi, user: str) -> None:
    moves = SteeredMoves()
    async with overlaid(xapi.upstream, moves=moves) as here:
        assert await here.client(receive, user) == ["http://127.0.0.1:1/migrate/x"]
    assert moves.users == [user]
    assert "VM.receive" not in xapi.database.calls


@pytest_twisted.ensureDeferred
async def test_nobody_does_more_than_the_upstream_lets_him(xapi: SimulatedXapi) -> None:
    moves = SteeredMoves()

    def work(session: Any) -> None:
        for call in (
            lambda x: x.VM.receive("OpaqueRef:sr", {}),
            lambda x: x.VM.migrate("OpaqueRef:vm", [], {}, {}),
            lambda x: x.Async.VM.migrate("OpaqueRef:vm", [], {}, {}),
        ):
            with pytest.raises(XenAPI.Failure, match="RBAC_PERMISSION_DENIED"):
                call(session.xenapi)

    async with overlaid(xapi.upstream, moves=moves) as here:
        await here.client(work, "guest")
        for bad in ("OpaqueRef:nobody", "", "<nil/>"):
            [refused] = await threads.deferToThread(ask, here.address, post(xml("VM.receive", bad, "OpaqueRef:sr")))
            assert refused.error()[0] == "SESSION_INVALID"
        underscores = json.dumps({"method": "VM_receive", "params": ["x", "y"], "id": 1})
        [refused] = await threads.deferToThread(ask, here.address, post(underscores, "/jsonrpc"))
        assert refused.json == {"result": None, "error": ["SESSION_INVALID", "x"], "id": 1}
    assert moves.users == []


@pytest_twisted.ensureDeferred
async def test_the_upstream_is_not_asked_each_time_and_a_log_out_ends_both(xapi: SimulatedXapi) -> None:
    def work(session: Any) -> None:
        for _ in range(5):
            receive(session)
        assert xapi.database.calls.count("session.get_record") == 1
        session.xenapi.session.logout()

    def once_more(here: Any, ref: str) -> list[str]:
        [refused] = ask(here.address, post(xml("VM.receive", ref, "OpaqueRef:sr")))
        return refused.error()

    async with overlaid(xapi.upstream, moves=SteeredMoves()) as here:
        refs: list[str] = []
        await here.client(lambda session: (refs.append(session._session), work(session)))
        assert await threads.deferToThread(once_more, here, refs[0]) == ["SESSION_INVALID", refs[0]]


class Upstream:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.answer: Any = {}
        self.asked = 0

    async def call(self, method: str, *params: Any) -> Any:
        assert method == "session.get_record"
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest_twisted.ensureDeferred
async def test_what_is_believed_is_believed_for_seconds() -> None:
    clock, upstream = Clock(), Upstream()
    sessions = VouchedSessions(Records(data_model(), clock), [], clock)
    identity = Identity(upstream, sessions, clock)  # type: ignore[arg-type]
    upstream.answer = {"auth_user_name": "a", "is_local_superuser": True, "rbac_permissions": []}
    (await identity.check("s")).must_be_permitted("vm.migrate_send")
    assert sessions.check("s") == "a"
    upstream.answer = {"auth_user_name": "a", "is_local_superuser": False, "rbac_permissions": ["vm.start"]}
    clock.advance(BELIEVED - 1)
    (await identity.check("s")).must_be_permitted("vm.migrate_send")
    clock.advance(2)
    with pytest.raises(NotPermitted):
        (await identity.check("s")).must_be_permitted("vm.migrate_send")
    clock.advance(BELIEVED + 1)
    upstream.answer = UpstreamSilent("x", "y")
    with pytest.raises(UpstreamSilent):
        await identity.check("s")
    assert sessions.check("s") == "a"  # it is only not known whether it still holds
    upstream.answer = RemoteError(["SESSION_INVALID", "s"], "gone")
    with pytest.raises(RemoteError):
        await identity.check("s")
    with pytest.raises(SessionInvalid):
        sessions.check("s")
    assert upstream.asked == 4


@pytest.mark.parametrize(
    "record",
    [None, [], "x", {}, {"is_local_superuser": "true"}, {"is_local_superuser": 1},
     {"rbac_permissions": "vm.migrate_send"}, {"rbac_permissions": [["vm.migrate_send"], None, 5]}, {"this_host": 7}],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_a_strange_record_gives_no_right(record: Any) -> None:
    clock, upstream = Clock(), Upstream()
    upstream.answer = record
    identity = Identity(upstream, VouchedSessions(Records(data_model(), clock), [], clock), clock)  # type: ignore[arg-type]
    with pytest.raises((NotPermitted, SessionInvalid)):
        (await identity.check("s")).must_be_permitted("vm.migrate_send")


HOSTILE = [
    b"[" * 100_000, b"{}", b"[]", b"null", b'{"error": {"message": {}, "data": [[1]]}}', b'{"error": 5}',
    b'{"error": {"code": 1, "message": "A", "data": ["' + b"x" * 100_000 + b'"]}}', b'{"result": 1e999}', b"\xff",
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE)
@pytest_twisted.ensureDeferred
async def test_a_hostile_answer_is_an_error(body: bytes) -> None:
    canned = Canned(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    async with overlaid(canned.upstream, moves=SteeredMoves()) as here:
        [refused] = await threads.deferToThread(ask, here.address, post(xml("VM.receive", "s", "OpaqueRef:sr")))
    code, *words = refused.error()
    assert code in ("CANNOT_CONTACT_HOST", "SESSION_INVALID", "INTERNAL_ERROR", "A")
    assert all(len(word) <= 1000 for word in words)
