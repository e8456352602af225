"""How the upstream is reached: TLS with verification, a unix socket; what is served beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import threads

from tests.upstream.overlaid import USERS, overlaid
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.test_upstream_away import ask
from tests.wire.raw import Conversation, post, xml
from xapi_migrate import tls
from xapi_migrate.errors import InvalidValue
from xapi_migrate.upstream.address import UpstreamAddress, parse_upstream


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tls.HostIdentity:
    return tls.HostIdentity.load(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def secure(identity: tls.HostIdentity) -> Iterator[SimulatedXapi]:
    with SimulatedXapi(USERS, tls=(identity.certificate_path, identity.key_path)) as running:
        yield running


def works(session: Any) -> list[str]:
    return list(session.xenapi.host.get_by_name_label("simulated"))


@pytest_twisted.ensureDeferred
async def test_a_pinned_certificate(secure: SimulatedXapi, identity: tls.HostIdentity) -> None:
    async with overlaid(f"{secure.upstream}#sha256={identity.fingerprint()}") as here:
        assert await here.client(works) == [secure.database.host]


@pytest_twisted.ensureDeferred
async def test_an_authority_of_its_own(secure: SimulatedXapi, identity: tls.HostIdentity) -> None:
    async with overlaid(secure.upstream, tls.trust_root(identity.certificate_path)) as here:
        assert await here.client(works) == [secure.database.host]


@pytest.mark.parametrize("fragment", ["", "#sha256=" + "0" * 64])
@pytest_twisted.ensureDeferred
async def test_a_stranger_is_told_nothing(secure: SimulatedXapi, fragment: str) -> None:
    async with overlaid(secure.upstream + fragment) as here:
        [answer] = await threads.deferToThread(ask, here.address, post(xml("session.login_with_password", "a", "b")))
    code, _, why = answer.error()
    assert code == "CANNOT_CONTACT_HOST"
    assert "certificate" in why
    assert secure.server.bodies == []


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_not_opened_to_the_network(short_tmp: Path) -> None:
    """Its log-in asks for no password."""
    with SimulatedXapi(USERS, path=short_tmp / "xapi") as xapi:
        async with overlaid(xapi.upstream, local=short_tmp / "own") as here:
            login = post(xml("session.login_with_password", "root", "wrong"))
            for request in (
                login,
                post("{}", "/jsonrpc"),
                b"GET /export?size=1 HTTP/1.1\r\n\r\n",
                b"PUT /x HTTP/1.1\r\n\r\n",
            ):
                [refused] = await threads.deferToThread(ask, here.address, request)
                assert refused.status == 403
            assert xapi.server.bodies == []

            def by_own_socket() -> str:
                with Conversation(str(short_tmp / "own")) as talk:
                    talk.say(login)
                    return talk.answer().value()

            assert "OpaqueRef:" in await threads.deferToThread(by_own_socket)


@pytest_twisted.ensureDeferred
async def test_migration_uris_are_ours(tmp_path: Path) -> None:
    with SimulatedXapi(USERS) as xapi:
        async with overlaid(xapi.upstream) as here:

            def work() -> list[int]:
                with Conversation(here.address) as talk:
                    talk.say(post(xml("system.listMethods")))
                    first = talk.answer()
                    talk.say(b"GET /migrate/x HTTP/1.1\r\nHost: x\r\n\r\n")
                    second = talk.answer()
                    assert talk.ended()
                    return [first.status, second.status]

            # without a tree nothing is there; what matters is who has answered
            assert await threads.deferToThread(work) == [200, 421]
        assert len(xapi.server.bodies) == 1


def test_addresses() -> None:
    assert parse_upstream("unix:/var/lib/xcp/xapi") == UpstreamAddress(path="/var/lib/xcp/xapi")
    assert parse_upstream("https://10.0.0.1") == UpstreamAddress(host="10.0.0.1", port=443, secure=True)
    assert parse_upstream("http://[::1]:8080/") == UpstreamAddress(host="::1", port=8080)
    assert str(parse_upstream("https://[::1]#sha256=" + "A" * 64)) == "https://[::1]:443"
    for wrong in ("", "ftp://x", "https://", "https://x/path", "https://u:p@x", "unix:relative", "http://x:70000",
                  "http://x#sha256=" + "a" * 64, "https://x#sha256=abc", "https://x y"):  # fmt: skip
        with pytest.raises(InvalidValue):
            parse_upstream(wrong)
