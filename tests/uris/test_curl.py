"""The whole tree with curl, which knows nothing of us: REST that is easy to test."""

from __future__ import annotations

import json
import time

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from xapi_migrate.errors import WrongMoment
from xapi_migrate.migration.interfaces import Outcome

pytestmark = pytest.mark.system


@pytest.fixture
def curl(served, tmp_path):
    async def ask(rest="", *options, scheme="http", path=None):
        port = served.port if scheme == "http" else served.tls_port
        uri = f"{scheme}://127.0.0.1:{port}{path or served.path}{rest}"
        words = ["curl", "-s", "-i", "--path-as-is", "--max-time", "10", "--insecure", *options, uri]
        out, err, code = await getProcessOutputAndValue("/usr/bin/env", words)
        assert code in (0, 55, 56), (code, err)
        *_, head, body = out.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["content-type"] in ("application/json", "text/plain; charset=utf-8")
        return int(status.split()[1]), headers, body

    return ask


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest_twisted.ensureDeferred
async def test_a_migration_by_hand(served, curl, tmp_path, scheme):
    document = tmp_path / "ova.xml"
    document.write_bytes(b"<ova>" + b"x" * 60_000 + b"</ova>")

    assert (await curl("", "--head", scheme=scheme))[0] == 200
    status, _, body = await curl("", scheme=scheme)
    assert (status, json.loads(body)["version"]) == (200, 1)
    assert (await curl("/metadata", "-T", str(document), scheme=scheme))[0] == 200
    chunked = ("-H", "Transfer-Encoding: chunked")
    assert (await curl("/metadata", "-T", str(document), *chunked, scheme=scheme))[0] == 200
    status, _, body = await curl("/disk/0", scheme=scheme)
    assert status == 200
    assert json.loads(body) == {
        "number": 0,
        "vdi_uuid": "vdi-1",
        "sr_uuid": "sr-1",
        "virtual_size": 1 << 30,
        "url": "iscsi://127.0.0.1:3260/iqn.2026-01.org.example:m1/0",
        "username": "user",
        "password": "chap-secret-123",
        "found": False,
        "proof": None,
    }
    status, _, body = await curl("/disk/2", scheme=scheme)
    assert (status, json.loads(body)["code"]) == (404, "HANDLE_INVALID")
    memory = tmp_path / "memory"
    memory.write_bytes((5 << 20).to_bytes(8, "big") + bytes(5 << 20))
    for options in ((), chunked, ("-H", "Expect:")):
        assert (await curl("/memory", "-T", str(memory), *options, scheme=scheme))[0] == 200
        assert served.receiving.reader.moved == 5 << 20
        served.receiving.reader.moved = 0
    assert json.loads((await curl("/control", scheme=scheme))[2]) == {"outcome": "open", "reason": ""}
    assert (await curl("/control", "-X", "PUT", "-d", "done", scheme=scheme))[0] == 200
    assert (await curl("/control", "-X", "PUT", "--data-binary", "done\n", scheme=scheme))[0] == 400
    status, _, body = await curl("/control", scheme=scheme)
    assert json.loads(body) == {"outcome": "committed", "reason": ""}
    status, _, body = await curl("", "-X", "DELETE", "-H", "Acknowledge: committed", scheme=scheme)
    assert (status, json.loads(body)["outcome"]) == (200, "committed")
    assert served.receiving.events[-1] == ("delete", Outcome.COMMITTED)
    assert (await curl("", "-X", "DELETE", "-H", "Acknowledge: maybe", scheme=scheme))[0] == 400


@pytest_twisted.ensureDeferred
async def test_giving_up_by_hand(served, curl):
    status, _, body = await curl("", "-X", "DELETE")
    assert (status, json.loads(body)["outcome"]) == (200, "aborted")
    status, _, body = await curl("/control", "-X", "PUT", "-d", "done")
    assert (status, json.loads(body)["outcome"]) == (410, "aborted")
    served.receiving.revoked = True
    assert (await curl("/disk/0"))[0] == 410
    assert (await curl(""))[0] == 410
    assert (await curl("", "--head"))[0] == 410


@pytest_twisted.ensureDeferred
async def test_errors_by_hand(served, curl, tmp_path):
    served.receiving.error = WrongMoment("PUT metadata", "Committed")
    big = tmp_path / "big"
    big.write_bytes(bytes(1 << 20))
    status, _, body = await curl("/metadata", "-X", "PUT", "-d", "x")
    assert status == 409
    assert json.loads(body) == {
        "code": "OPERATION_NOT_ALLOWED",
        "params": [str(served.receiving.error)],
        "message": "PUT metadata came at the wrong moment: the migration is Committed.",
    }
    assert (await curl("/metadata", "-T", str(big)))[0] == 413
    assert (await curl("/metadata", "-T", str(big), "-H", "Transfer-Encoding: chunked"))[0] == 413
    assert (await curl("/disk/0", "-X", "GET", "-d", "a body"))[0] == 413
    status, headers, body = await curl("/metadata")
    assert (status, headers["allow"]) == (405, "PUT")
    upgrade = (
        "-X",
        "PUT",
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: xapi-migrate-memory",
        "-H",
        "Content-Length: 0",
    )
    status, _, body = await curl("/memory", *upgrade, scheme="https")
    assert (status, json.loads(body)["message"][:16]) == (426, "A TLS connection")
    for rest in ("/", "/../metadata", "/%2e%2e/metadata", "/disk/00", "//metadata", "?x=y", "/metadata;x"):
        status, _, body = await curl(rest)
        assert (status, body) == (404, b"Not found.\n")
    for path in ("/migrate", "/%6digrate", "/migrate/..", "/migrate/" + "w" * 43):
        status, _, body = await curl("", path=path)
        assert (status, body) == (404, b"Not found.\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("framing", ["Content-Length: 104857600", "Transfer-Encoding: chunked"])
@pytest_twisted.ensureDeferred
async def test_a_big_body_for_a_wrong_capability(served, curl, tmp_path, scheme, framing):
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(100 << 20)
    began = time.monotonic()
    options = ("-T", str(big), "-H", "Expect:", "-H", framing)
    assert (await curl("", *options, scheme=scheme, path=f"/migrate/{'w' * 43}/memory"))[0] == 404
    assert time.monotonic() - began < 10
