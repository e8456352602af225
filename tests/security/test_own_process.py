"""What the daemon makes of its process, and of the folder that it is given."""

from __future__ import annotations

import re
import resource
import select
import shutil
import socket
import time
from pathlib import Path
from uuid import uuid4

import pytest

from tests.xenapi.test_local_socket import local_session
from xapi_migrate.errors import InvalidValue
from xapi_migrate.lab.host import LabHost
from xapi_migrate.own_process import check_private

OF_ADDRESS = 5


@pytest.mark.parametrize(("mode", "said"), [(0o700, ""), (0o755, "others may look"), (0o770, "others may look")])
def test_a_folder_that_others_may_look_into_is_told_of(tmp_path: Path, mode: int, said: str) -> None:
    tmp_path.chmod(mode)
    told = check_private(tmp_path)
    assert said in told
    assert bool(said) == bool(told)


def test_a_folder_that_everybody_may_write_into_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(InvalidValue, match="chmod 700"):
        check_private(tmp_path)


@pytest.mark.system
def test_a_daemon_is_private_has_its_descriptors_and_lets_few_strangers_in(short_tmp: Path) -> None:
    host = LabHost("one", short_tmp / "state", "secret")
    local = Path("/tmp") / f"x{uuid4().hex[:8]}" / "xapi"  # the library cannot name a path with an underscore
    host.configure({"api_socket": str(local), "connections_of_address": OF_ADDRESS})
    host.state_dir.chmod(0o755)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 512), hard))
    try:
        host.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    strangers = []
    try:
        host.wait_ready(100.0)
        assert host.process is not None
        about = Path("/proc") / str(host.process.pid)
        assert "Umask:\t0077\n" in (about / "status").read_text()
        limits = re.search(r"Max open files +(\d+) +(\d+)", (about / "limits").read_text())
        assert limits is not None
        assert limits.groups() == (str(hard), str(hard))
        assert "others may look into it" in host.log_path.read_text()
        for _ in range(4):
            strangers += [socket.create_connection(("127.0.0.1", host.port)) for _ in range(OF_ADDRESS)]
        for port in (host.port, host.https_port):
            strangers += [socket.create_connection(("127.0.0.1", port)) for _ in range(OF_ADDRESS)]
        with host.server.session() as session:
            assert session.call("host.get_all")
        # so many of one address may stay; which came last depends on which port was looked at first
        until, there = time.monotonic() + 30, list(strangers)
        while len(there) > OF_ADDRESS and time.monotonic() < until:
            readable, _, _ = select.select(there, [], [], 0.1)
            there = [one for one in there if one not in readable or not _has_ended(one)]
        assert len(there) <= OF_ADDRESS
        while not local.exists() and time.monotonic() < until:  # it is opened after the ports
            time.sleep(0.02)
        assert local.parent.stat().st_mode & 0o777 == 0o755
        local_session(local).xenapi.login_with_password("", "")
    finally:
        for one in strangers:
            one.close()
        host.end()
        shutil.rmtree(local.parent, ignore_errors=True)


def _has_ended(one: socket.socket) -> bool:
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True
