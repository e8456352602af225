"""A daemon beside another daemon: real processes, real settings, the clients' library."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import pytest
import XenAPI

from tests.system.test_doctor import command
from tests.upstream.simulated.server import SimulatedXapi
from tests.upstream.simulated.storage import SR_MOUNT
from tests.wire.raw import xml
from xapi_migrate import tls
from xapi_migrate.lab.host import LabHost
from xapi_migrate.upstream import extensions
from xapi_migrate.upstream.lease import BLOCKED, MOVING, Lease

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


@pytest.fixture
def ext_sr() -> Iterator[tuple[str, Path]]:
    """A uuid, and the folder below which xapi mounts the SR of type ext with that uuid."""
    uuid = str(uuid4())
    folder = SR_MOUNT / uuid
    folder.mkdir(parents=True)
    try:
        yield uuid, folder
    finally:
        shutil.rmtree(folder)


def test_a_halted_vm_of_xapis_moves_with_its_vhd(short_tmp: Path, ext_sr: tuple[str, Path]) -> None:
    """From an SR of type ext, beside the simulated xapi, to a daemon that stands alone."""
    sr_uuid, folder = ext_sr
    xapi = SimulatedXapi({"root": ("same for both", "root")})
    hosts = beside, receiver = [LabHost(name, short_tmp / name[0], "same for both") for name in ("beside", "receiver")]
    content = bytes(range(256)) * 4096
    with xapi:
        database = xapi.database
        database.add_control_domain()
        sr = database.create("SR", uuid=sr_uuid, name_label="Local storage", type="ext", content_type="user")
        database.create("PBD", SR=sr, host=database.host, currently_attached=True, device_config={"device": "/dev/x"})
        vm = database.create(
            "VM", name_label="a", power_state="Halted", is_a_template=False, VCPUs_max=1, memory_static_max=64 << 20
        )
        vdi = database.create("VDI", SR=sr, virtual_size=SIZE, type="user", managed=True, sm_config={"vdi_type": "vhd"})
        database.create("VBD", VM=vm, VDI=vdi, userdevice="0", type="Disk", mode="RW")
        image = folder / f"{database.find('VDI', vdi)['uuid']}.vhd"
        raw = short_tmp / "content"
        raw.write_bytes(bytes(4 << 20) + content + bytes(SIZE - (4 << 20) - len(content)))
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw, image]
        subprocess.run(convert, check=True, timeout=60)
        beside.configure({"upstream": xapi.upstream})
        receiver.configure({})
        (beside.state_dir / "users").unlink()
        try:
            for host in hosts:
                host.start()
            for host in hosts:
                host.wait_ready()
            with receiver.server.session() as there:
                uris = there.xenapi.VM.receive(file_sr(there, short_tmp / "received"))
            assert command(beside, "doctor").stdout == "Nothing is left behind.\n"
            lost = Lease("lost", vm, "OpaqueRef:none", [vdi], state=MOVING, uuid=database.find("VM", vm)["uuid"])
            database.update("VM", vm, blocked_operations=dict.fromkeys(BLOCKED, lost.reason))
            beside.end()
            (beside.state_dir / "upstream" / "lost.json").write_text(json.dumps(attrs.asdict(lost)))
            beside.start()
            beside.wait_ready()
            assert f"VM {lost.uuid} is in doubt" in command(beside, "doctor").stdout
            settled = command(beside, "force-settle", lost.uuid, "--outcome", "stays", "--yes")
            assert settled.returncode == 0, settled.stderr
            assert database.find("VM", vm)["blocked_operations"] == {}
            with beside.server.session() as session:
                assert session.xenapi.VM.migrate(vm, uris, {}, {}) == vm
                assert session.xenapi.VM.get_all() == [session.xenapi.host.get_control_domain(database.host)]
                assert session.xenapi.VDI.get_all() == []
            with receiver.server.session() as there:
                assert there.xenapi.VM.get_power_state(vm) == "Halted"
            assert list(folder.iterdir()) == []
            [arrived] = (short_tmp / "received").glob("*.raw")
            assert arrived.read_bytes() == raw.read_bytes()
            assert list((beside.state_dir / "upstream").iterdir()) == []
        finally:
            for host in hosts:
                host.end()
