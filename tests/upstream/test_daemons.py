"""A daemon beside another daemon: real processes, real settings, the clients' library."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import XenAPI

from tests.wire.raw import xml
from xapi_migrate import tls
from xapi_migrate.lab.host import LabHost
from xapi_migrate.upstream import extensions


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
    with pytest.raises(XenAPI.Failure, match="OPERATION_NOT_ALLOWED"):
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
