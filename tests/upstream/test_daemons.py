"""A daemon beside another daemon: real processes, real settings, the clients' library."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import XenAPI

from tests.wire.raw import xml
from xapi_migrate import tls
from xapi_migrate.lab.host import LabHost
from xapi_migrate.upstream import extensions

pytestmark = pytest.mark.system
SIZE = 8 << 20


@pytest.fixture
def two(short_tmp: Path) -> Iterator[tuple[LabHost, LabHost]]:
    """The upstream, and who stands beside it."""
    upstream = LabHost("upstream", short_tmp / "u", "same for both")
    beside = LabHost("beside", short_tmp / "b", "same for both")
    upstream.configure({})
    fingerprint = tls.HostIdentity.load(upstream.state_dir).fingerprint()
    beside.configure({"upstream": f"{upstream.https_url}#sha256={fingerprint}", "api_socket": "api.sock"})
    (beside.state_dir / "users").unlink()
    try:
        upstream.start()
        beside.start()
        upstream.wait_ready()
        beside.wait_ready()
        yield upstream, beside
    finally:
        beside.end()
        upstream.end()


def test_the_upstream_may_be_killed_and_come_back(two: tuple[LabHost, LabHost]) -> None:
    upstream, beside = two
    session = XenAPI.Session(beside.url)
    session.xenapi.login_with_password("root", "same for both", "1.0", "tests")
    vm = session.xenapi.VM.create({"name_label": "a", "memory_static_max": "67108864"})
    with upstream.server.session() as direct:
        assert direct.xenapi.VM.get_name_label(vm) == "a"
        assert direct.xenapi.host.get_all() == session.xenapi.host.get_all()
    with pytest.raises(XenAPI.Failure, match="INVALID_VALUE"):
        session.xenapi.VM.migrate(vm, ["http://127.0.0.1:1/migrate/x"], {}, {})
    extensions.install(beside.state_dir / "extensions.json", beside.state_dir / "x", beside.state_dir / "api.sock")
    program = beside.state_dir / "x" / "VM.migrate"
    call = xml("VM.migrate", "OpaqueRef:nobody", vm, "<array><data/></array>", "<struct/>").encode()
    done = subprocess.run([program, "--xmlrpc"], input=call, capture_output=True, timeout=60, check=True)
    assert b"SESSION_INVALID" in done.stdout

    upstream.kill()
    with pytest.raises(XenAPI.Failure, match="CANNOT_CONTACT_HOST"):
        session.xenapi.VM.get_all()
    upstream.start()
    upstream.wait_ready()
    session.xenapi.login_with_password("root", "same for both", "1.0", "tests")
    assert session.xenapi.VM.get_name_label(vm) == "a"
    session.xenapi.session.logout()
    session("close")()


def file_sr(session: Any, folder: Path) -> str:
    folder.mkdir()
    [host] = session.xenapi.host.get_all()
    config = {"location": str(folder), "format": "raw"}
    return str(session.xenapi.SR.create(host, config, "0", folder.name, "", "file", "user", False, {}))


def test_a_halted_vm_of_the_upstream_moves_with_its_disk(two: tuple[LabHost, LabHost], short_tmp: Path) -> None:
    upstream, beside = two
    receiver = LabHost("receiver", short_tmp / "r", "same for both")
    receiver.configure({})
    try:
        receiver.start()
        receiver.wait_ready()
        with upstream.server.session() as there:
            sr = file_sr(there, short_tmp / "images")
            vm = there.xenapi.VM.create({"name_label": "a", "memory_static_max": "67108864", "VCPUs_max": "1"})
            uuid = there.xenapi.VM.get_uuid(vm)
            vdi = there.xenapi.VDI.create({"SR": sr, "virtual_size": str(SIZE), "name_label": "disk"})
            there.xenapi.VBD.create({"VM": vm, "VDI": vdi, "userdevice": "0"})
        [image] = (short_tmp / "images").glob("*.raw")
        content = bytes(range(256)) * 4096
        with image.open("r+b") as file:
            file.seek(4 << 20)
            file.write(content)
        with receiver.server.session() as there:
            uris = there.xenapi.VM.receive(file_sr(there, short_tmp / "received"))
        with beside.server.session() as session:
            assert session.xenapi.VM.migrate(vm, uris, {}, {}) == vm
            assert session.xenapi.VM.get_all() == []
            assert session.xenapi.VDI.get_all() == []
        with receiver.server.session() as there:
            assert there.xenapi.VM.get_uuid(vm) == uuid
            assert there.xenapi.VM.get_power_state(vm) == "Halted"
        assert not image.exists()
        [arrived] = (short_tmp / "received").glob("*.raw")
        assert arrived.stat().st_size == SIZE
        assert arrived.read_bytes()[4 << 20 : (4 << 20) + len(content)] == content
        assert list((beside.state_dir / "upstream").iterdir()) == []
    finally:
        receiver.end()
