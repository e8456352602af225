"""What members say to each other, over real TLS: who is answered, who is believed, and what silence is."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet import defer, reactor, threads
from twisted.web.resource import Resource
from twisted.web.server import Site

from xapi_migrate import tls
from xapi_migrate.errors import HandleInvalid, RemoteError
from xapi_migrate.pool.member_client import MemberClient, MemberSilent
from xapi_migrate.pool.member_resource import MemberResource
from xapi_migrate.pool.wire import Address
from xapi_migrate.together import started

SECRET = "5e" * 32


def refuse(told: Any) -> None:
    raise HandleInvalid("VM", told["vm"])


@asynccontextmanager
async def member(folder: Path) -> AsyncIterator[tuple[Address, list[Any]]]:
    asked: list[Any] = []
    identity = tls.HostIdentity.load(folder)
    root = Resource()
    never: defer.Deferred[None] = defer.Deferred(lambda _: None)
    answers = {"hello": lambda told: asked.append(told["from"]), "refuse": refuse, "hang": lambda told: never}
    root.putChild(b"member", MemberResource(SECRET, answers))
    port = await tls.server_endpoint(reactor, "tls:0:interface=127.0.0.1", identity).listen(Site(root))
    try:
        yield Address("127.0.0.1", port.getHost().port, identity.fingerprint()), asked
    finally:
        await defer.maybeDeferred(port.stopListening)


@pytest_twisted.ensureDeferred
async def test_a_member_is_answered_and_its_refusals_are_told(tmp_path: Path) -> None:
    async with member(tmp_path) as (address, asked):
        client = MemberClient(reactor, address, SECRET)
        await client.ask("hello", {"from": "me"})
        assert asked == ["me"]
        with pytest.raises(RemoteError) as refused:
            await client.ask("refuse", {"vm": "OpaqueRef:x"})
        assert refused.value.failure() == ["HANDLE_INVALID", "VM", "OpaqueRef:x"]
        await client.close()


@pytest_twisted.ensureDeferred
async def test_who_does_not_know_the_secret_finds_nothing_there(tmp_path: Path) -> None:
    async with member(tmp_path) as (address, asked):
        for secret in ("", "5f" * 32, SECRET[:-1]):
            client = MemberClient(reactor, address, secret)
            with pytest.raises(MemberSilent, match="404"):
                await client.ask("hello", {"from": "stranger"})
            await client.close()

        def get() -> int:
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", address.port, context=context, timeout=10)
            connection.request("GET", "/member", headers={"Authorization": f"Bearer {SECRET}"})
            status = connection.getresponse().status
            connection.close()
            return status

        assert await threads.deferToThread(get) == 404
        assert asked == []


@pytest_twisted.ensureDeferred
async def test_a_server_with_another_certificate_is_told_nothing(tmp_path: Path) -> None:
    async with member(tmp_path) as (address, asked):
        client = MemberClient(reactor, attrs.evolve(address, fingerprint="ab" * 32), SECRET)
        with pytest.raises(MemberSilent):
            await client.ask("hello", {"from": "me"})
        assert asked == []
        await client.close()


@pytest_twisted.ensureDeferred
async def test_what_a_dead_member_was_asked_fails_when_it_is_given_up(tmp_path: Path) -> None:
    async with member(tmp_path) as (address, _):
        client = MemberClient(reactor, address, SECRET)
        asked = started(client.ask("hang", {}))
        await client.ask("hello", {"from": "me"})
        client.give_up()
        with pytest.raises(MemberSilent):
            await asked
        await client.close()
    client = MemberClient(reactor, address, SECRET)
    with pytest.raises(MemberSilent):
        await client.ask("hello", {"from": "me"})
    await client.close()
