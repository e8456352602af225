"""Bad input: each a clear error, the guest untouched, nothing left behind."""

from __future__ import annotations

import http.client
import time
import xmlrpc.client
from collections.abc import Iterator

import pytest
import XenAPI

from tests.system.world import GuestOf, World
from xapi_migrate.lab.provisioning import Guest

pytestmark = pytest.mark.system

NULL = "OpaqueRef:NULL"
UNKNOWN = "OpaqueRef:00000000-0000-0000-0000-000000000000"
BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9))
    + b"]><value>&j;</value>"
)


@pytest.fixture(scope="module")
def guest(lab_world: World) -> Iterator[GuestOf]:
    made = lab_world.new_guest(lab_world.source, Guest())
    yield made
    lab_world.destroy(lab_world.source, made.uuid)


@pytest.fixture
def quiet(lab_world: World, guest: GuestOf) -> Iterator[World]:
    """After each test the guest runs on, busy with nothing, and the destination is empty."""
    yield lab_world
    record = lab_world.vms(lab_world.source)[guest.uuid]
    assert record["power_state"] == "Running"
    assert record["current_operations"] == {}
    assert lab_world.ticks(guest.uuid, lab_world.source, 0.2)
    lab_world.nothing_left(lab_world.destination)
    assert list((lab_world.source.state_dir / "journal").glob("*")) == []
    assert list((lab_world.source.state_dir / "copiers").glob("*")) == []


def migrate(world: World, *arguments: object) -> list[str]:
    """The error of a VM.migrate."""
    with world.session(world.source) as api, pytest.raises(XenAPI.Failure) as raised:
        api.VM.migrate(*arguments)
    return list(raised.value.details)


def test_an_unknown_vm(quiet: World) -> None:
    assert migrate(quiet, UNKNOWN, quiet.receive(), {}, {}) == ["HANDLE_INVALID", "VM", UNKNOWN]


def test_wrong_types(quiet: World, guest: GuestOf) -> None:
    vm = _ref(quiet, guest)
    assert migrate(quiet, vm, "http://no-list", {}, {})[0] == "FIELD_TYPE_ERROR"
    assert migrate(quiet, vm, quiet.receive(), [], {})[0] == "FIELD_TYPE_ERROR"
    assert migrate(quiet, vm)[:2] == ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.migrate"]


def test_an_unknown_option(quiet: World, guest: GuestOf) -> None:
    assert migrate(quiet, _ref(quiet, guest), quiet.receive(), {}, {"lvie": "true"})[0] == "OPERATION_NOT_ALLOWED"


@pytest.mark.parametrize(
    "uri",
    [
        "gopher://127.0.0.1/migrate/" + "A" * 43,
        "http://user:password@127.0.0.1/migrate/" + "A" * 43,
        "http://127.0.0.1/somewhere/else",
        "file:///etc/shadow",
        "http://127.0.0.1/migrate/" + "A" * 43 + "/../../RPC2",
        "not a uri",
    ],
)
def test_malformed_uris(quiet: World, guest: GuestOf, uri: str) -> None:
    error = migrate(quiet, _ref(quiet, guest), [uri], {}, {})
    assert error[0] == "INVALID_VALUE"
    assert "A" * 43 not in " ".join(error)


def test_no_uris(quiet: World, guest: GuestOf) -> None:
    assert migrate(quiet, _ref(quiet, guest), [], {}, {})[0] == "INVALID_VALUE"


def test_a_vdi_without_an_sr_to_go_to(quiet: World, guest: GuestOf) -> None:
    with quiet.session(quiet.destination) as api:
        uris = api.VM.receive(NULL)
    error = migrate(quiet, _ref(quiet, guest), uris, {}, {})
    assert error[0] == "VDI_NOT_IN_MAP"


def test_an_sr_that_does_not_exist(quiet: World, guest: GuestOf) -> None:
    with quiet.session(quiet.destination) as api, pytest.raises(XenAPI.Failure) as raised:
        api.VM.receive(UNKNOWN)
    assert raised.value.details[:2] == ["HANDLE_INVALID", "SR"]
    with quiet.session(quiet.source) as api:
        vdi = api.VDI.get_by_uuid(guest.vdis[0])
    error = migrate(quiet, _ref(quiet, guest), quiet.receive(), {vdi: UNKNOWN}, {})
    assert error[:2] == ["HANDLE_INVALID", "SR"]


def test_an_sr_that_is_too_small(quiet: World, guest: GuestOf, tmp_path_factory: pytest.TempPathFactory) -> None:
    small = tmp_path_factory.mktemp("small")
    with quiet.session(quiet.destination) as api:
        config = {"location": str(small), "format": "raw", "size_limit": str(32 << 20)}
        sr = api.SR.create(api.host.get_all()[0], config, "0", "small", "", "file", "user", False, {})
        uris = api.VM.receive(sr)
    try:
        error = migrate(quiet, _ref(quiet, guest), uris, {}, {})
        assert error[0] == "SR_FULL"
        assert int(error[1]) == (guest.guest.disk + guest.guest.second_disk) << 20
        assert list(small.glob("*.raw")) == []
        steps = quiet.story(quiet.source, "sender")
        assert "3.1" not in steps
    finally:
        with quiet.session(quiet.destination) as api:
            quiet.nothing_left(quiet.destination)
            api.SR.destroy(sr)


def _ref(world: World, guest: GuestOf) -> str:
    with world.session(world.source) as api:
        return str(api.VM.get_by_uuid(guest.uuid))


def request(
    world: World, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", world.destination.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_an_xml_bomb_as_metadata(quiet: World) -> None:
    path = quiet.receive()[0].split(str(quiet.destination.port))[1]
    began = time.monotonic()
    status, body = request(quiet, "PUT", f"{path}/metadata", BOMB)
    assert time.monotonic() - began < 5
    assert status == 400
    assert b"IMPORT_ERROR" in body
    assert request(quiet, "DELETE", path)[0] == 200


def test_an_xml_bomb_as_a_call(quiet: World) -> None:
    began = time.monotonic()
    status, body = request(quiet, "POST", "/", BOMB, {"Content-Type": "text/xml"})
    assert time.monotonic() - began < 5
    assert status in (200, 400)
    assert b"aaaaaaaaaaaaaaaaaaaa" not in body


@pytest.mark.parametrize(("method", "below"), [("PUT", "/metadata"), ("PUT", "/memory"), ("PUT", "/control")])
def test_a_body_of_100_megabytes(quiet: World, method: str, below: str) -> None:
    path = quiet.receive()[0].split(str(quiet.destination.port))[1]
    assert _flood(quiet, method, path + below) in (400, 409, 411, 413)
    assert _flood(quiet, method, f"/migrate/{'A' * 43}{below}") == 404
    assert request(quiet, "DELETE", path)[0] == 200


def test_a_call_of_100_megabytes(quiet: World) -> None:
    assert _flood(quiet, "POST", "/") == 413


def _flood(world: World, method: str, path: str) -> int:
    """Announce 100 MB and send until the host refuses; the status of its answer, which comes early."""
    connection = http.client.HTTPConnection("127.0.0.1", world.destination.port, timeout=10)
    sent = 0
    try:
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(100 << 20))
        connection.endheaders()
        try:
            while sent < 100 << 20:
                connection.send(b" " * (1 << 16))
                sent += 1 << 16
                if sent == 1 << 16:
                    time.sleep(0.3)
        except OSError:
            pass
        status = connection.getresponse().status
    finally:
        connection.close()
    assert sent < 50 << 20, "it read all of it"
    return status


@pytest.mark.parametrize("below", ["", "/metadata", "/disk/0", "/memory", "/control"])
def test_a_wrong_capability_is_not_told_apart_from_nonsense(quiet: World, below: str) -> None:
    method = {"": "GET", "/disk/0": "GET"}.get(below, "PUT")
    wrong = request(quiet, method, f"/migrate/{'B' * 43}{below}")
    nonsense = request(quiet, method, f"/migrate/nonsense{below}")
    assert wrong == nonsense
    assert wrong[0] == 404


def test_a_session_that_ended(quiet: World) -> None:
    session = XenAPI.Session(quiet.destination.url)
    session.xenapi.login_with_password("root", quiet.destination.password)
    reference = session.handle
    session.xenapi.session.logout()
    again = xmlrpc.client.ServerProxy(quiet.destination.url)
    answer = again.VM.receive(reference, NULL)
    assert answer == {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", reference]}
