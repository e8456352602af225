"""An offer that is withdrawn, or expires, before its metadata has come: the next request gets 404. One that was let in
before that, and whose body came later, is answered all the same, and makes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.migration.over_http import OverHttp
from tests.migration.test_crashes import over
from tests.uris.raw import Raw, connect
from xapi_migrate.errors import MigrationAborted
from xapi_migrate.migration.interfaces import Answer, IReceiving, Outcome
from xapi_migrate.testing.direct_peer import Fate
from xapi_migrate.testing.fake_domains import FakeDomains
from xapi_migrate.testing.two_hosts import TIMES, TwoHosts
from xapi_migrate.together import started

LATE: dict[str, tuple[Callable[[IReceiving], Awaitable[object]], type]] = {
    "DELETE": (lambda late: late.delete("again"), Answer),
    "DELETE that acknowledges": (lambda late: late.delete("again", Outcome.ABORTED), Answer),
    "PUT control": (lambda late: late.put_done(), Answer),
    "PUT metadata": (lambda late: late.put_metadata(b"what would be refused"), MigrationAborted),
}


def document() -> bytes:
    """What a sender puts."""
    world, seen = TwoHosts(Clock()), list[bytes]()

    def hook(number: int, sent: str) -> Fate:
        if sent == "PUT metadata":
            seen.extend(sending.migration.document for sending in world.source.engine._outgoing.values())
        return Fate.DELIVERED

    world.wire.fate = hook
    task = world.migrate(world.source.new_vm())
    assert world.run(30, lambda: over(task))
    return seen[0]


@pytest.mark.parametrize("expires", [False, True], ids=["withdrawn", "expired"])
@pytest.mark.parametrize("message", LATE)
def test_a_request_that_was_let_in_before(world: TwoHosts, message: str, expires: bool) -> None:
    capability = world.receive()[0].removeprefix("direct:")
    late = world.destination.engine.find(capability)
    assert late is not None
    if expires:
        world.run(TIMES.offer + 1, step=0.5)
    else:
        said: list[Answer] = []
        started(late.delete("not wanted")).addCallback(said.append)
        assert [answer.outcome for answer in said] == [Outcome.ABORTED]
        assert said[0].reason.endswith("not wanted")
    assert world.destination.engine.find(capability) is None
    ask, expected = LATE[message]
    heard: list[object] = []
    started(ask(late)).addBoth(heard.append)
    world.run(1)
    [answer] = [one.value if isinstance(one, Failure) else one for one in heard]
    assert isinstance(answer, expected), answer
    if isinstance(answer, Answer):
        assert answer.outcome is Outcome.ABORTED
    assert world.destination.tasks.all == []
    assert world.destination.left_behind() == []


def test_metadata_that_a_withdrawal_overtakes_makes_nothing(world: TwoHosts) -> None:
    good = document()
    late = world.destination.engine.find(world.receive()[0].removeprefix("direct:"))
    assert late is not None
    started(late.delete("not wanted"))
    heard: list[object] = []
    started(late.put_metadata(good)).addErrback(lambda failure: heard.append(failure.value))
    world.run(30, step=0.05)
    assert [type(one) for one in heard] == [MigrationAborted]
    assert world.destination.tasks.all == []
    assert world.destination.left_behind() == []


@pytest_twisted.async_yield_fixture
async def http(tmp_path: Path) -> AsyncIterator[OverHttp]:
    world = OverHttp(tmp_path, FakeDomains, FakeDomains)
    await world.open()
    yield world
    await world.close()


@pytest.mark.system
@pytest.mark.parametrize(
    ("method", "below", "body", "status"),
    [
        ("DELETE", "", b"", b"200"),
        ("PUT", "/control", b"4\r\ndone\r\n", b"410"),
        ("PUT", "/metadata", b"1\r\n<\r\n", b"410"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_over_http(http: OverHttp, method: str, below: str, body: bytes, status: bytes) -> None:
    """Two connections at once, and what comes when it is over."""
    uris: list[list[str]] = []
    started(http.destination.engine.receive(http.destination.sr, {})).addCallback(uris.append)
    uri = next(uri for uri in uris[0] if uri.startswith("http:"))
    port, path = int(uri.split("/")[2].split(":")[1]), "/" + uri.split("/", 3)[3]
    first, second = await connect(port), await connect(port)
    head = f"{method} {path}{below} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    second.send(head)
    await http.until(lambda: http.watch.requests == [f"{method} {below[1:]}".strip()], "its headers do not come")
    await ask(first, f"DELETE {path}", b"200")
    second.send(body + b"0\r\n\r\n")
    await second.sees(b"HTTP/1.1 " + status)
    await ask(first, f"DELETE {path}", b"404")
    assert http.destination.tasks.all == []
    for raw in (first, second):
        await raw.close()


async def ask(raw: Raw, request: str, status: bytes) -> None:
    raw.send(f"{request} HTTP/1.1\r\nHost: r\r\n\r\n".encode())
    await raw.sees(b"HTTP/1.1 " + status)
