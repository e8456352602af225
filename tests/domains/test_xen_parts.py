"""What of the Xen driver needs no Xen. The driver itself is tested on real Xen: tests/xen, `make test-xen`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from pathlib import Path

import attrs
import pytest
from pytest_twisted import ensureDeferred
from twisted.internet import defer, reactor

from tests.domains.hosts import Hosts
from tests.xen.bench import Bridge
from xapi_migrate.config import Config
from xapi_migrate.daemon import open_daemon
from xapi_migrate.domains import xen_disks, xen_watch
from xapi_migrate.domains.announcement import announce, frame
from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec
from xapi_migrate.domains.xen_config import XenConfig
from xapi_migrate.domains.xen_hardware import config, disk_name
from xapi_migrate.domains.xen_processes import call
from xapi_migrate.domains.xen_stream import GivenUp, carry

SPEC = DomainSpec(
    domain_id="3b0e0f6e-0000-4000-8000-000000000001", vm_uuid="3b0e0f6e-0000-4000-8000-000000000002",
    name='a "name"', memory=96 << 20, vcpus=2,
    disks=(DomainDisk("0", "/s0", "e"), DomainDisk("3", "/s3", "e", read_only=True)),
    nics=(DomainNic("0", "00:16:3e:00:00:01", "xenbr0"), DomainNic("1", "00:16:3e:00:00:02")),
)  # fmt: skip
DEVICES = {"0": "/dev/nbd4", "3": "/dev/nbd7"}


def test_its_hardware_in_libxls_words() -> None:
    told = json.loads(config(SPEC, XenConfig(kernel="/k", ramdisk="/r", arguments="quiet"), DEVICES))
    assert told["c_info"] == {
        "type": "pvh", "name": SPEC.domain_id, "uuid": SPEC.vm_uuid, "run_hotplug_scripts": "True",
    }  # fmt: skip
    build = told["b_info"]
    assert (build["max_memkb"], build["target_memkb"], build["avail_vcpus"]) == (96 << 10, 96 << 10, [0, 1])
    assert (build["kernel"], build["ramdisk"], build["cmdline"]) == ("/k", "/r", "quiet")
    assert [(disk["pdev_path"], disk["vdev"], disk["readwrite"]) for disk in told["disks"]] == [
        ("/dev/nbd4", "xvda", 1), ("/dev/nbd7", "xvdd", 0),
    ]  # fmt: skip
    assert [(nic["mac"], nic["bridge"]) for nic in told["nics"]] == [("00:16:3e:00:00:01", "xenbr0")]
    assert SPEC.name not in json.dumps(told)


def test_hardware_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="xen-pvh, not pc-i440fx-7.2"):
        config(attrs.evolve(SPEC, machine="pc-i440fx-7.2"), XenConfig(), DEVICES)
    with pytest.raises(ValueError, match="no place for disk 26"):
        disk_name("26")
    assert disk_name("25") == "xvdz"


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({"running": True}, "running"), ({"blocked": True}, "running"), ({"paused": True, "blocked": True}, "paused"),
        ({"shutdown": True, "shutdown_reason": "suspend", "paused": True}, "suspended"),
        ({"shutdown": True, "shutdown_reason": "poweroff"}, "shutdown"),
        ({"shutdown": True, "shutdown_reason": "reboot"}, "reboot"),
        ({"shutdown": True, "shutdown_reason": "crash"}, "crashed"),
        ({"shutdown": True, "shutdown_reason": "watchdog"}, "crashed"),
        ({"dying": True, "shutdown": True, "shutdown_reason": "suspend"}, ""),
    ],
)  # fmt: skip
def test_what_a_domain_does(info: dict[str, object], word: str) -> None:
    assert xen_watch.doing(info) == word


def test_the_frame_is_qemus() -> None:
    assert frame("52:54:00:12:34:56").hex() == (
        "ffffffffffff" "525400123456" "8035" "0001" "0800" "06" "04" "0003" "525400123456" "00000000" "525400123456"
        "00000000" + "00" * 18
    )  # fmt: skip


@pytest.mark.system
@ensureDeferred
async def test_announced_behind_the_bridge() -> None:
    with Bridge() as bridge:
        nics = (DomainNic("0", "00:16:3e:00:0a:01", bridge.name), DomainNic("1", "00:16:3e:00:0a:02"))
        await announce(reactor, (*nics, DomainNic("2", "00:16:3e:00:0a:03", "no-such-bridge")))
        assert bridge.announced() == ["00:16:3e:00:0a:01"] * 5


class _Carried:
    """`carry` in a thread, from a pipe to a socket."""

    def __init__(self) -> None:
        self.source, self.libxl = os.pipe()
        self.sink, self.outside = socket.socketpair()
        self.brake, self.daemon = os.pipe()
        self.told: list[int] = []
        self.ended: list[object] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.ended.append(carry(self.source, self.sink.fileno(), self.brake, self.told.append))
        except Exception as failure:
            self.ended.append(failure)

    def end(self) -> object:
        """How it ended; everything is closed."""
        self._thread.join(10)
        assert not self._thread.is_alive(), "it does not end"
        for fd in (self.source, self.brake):
            os.close(fd)
        self.sink.close()
        self.outside.close()
        return self.ended[0]


def test_a_stream_is_carried_to_its_end() -> None:
    carried = _Carried()
    data = os.urandom(3 << 20)
    writer = threading.Thread(target=lambda: (os.write(carried.libxl, data), os.close(carried.libxl)))
    writer.start()
    seen = b""
    while len(seen) < len(data):
        seen += carried.outside.recv(1 << 20)
    writer.join(10)
    assert carried.end() == len(data)
    os.close(carried.daemon)
    assert carried.told[-1] == len(data)
    assert seen == data


@pytest.mark.parametrize("full", [False, True])
def test_a_stream_is_given_up(full: bool) -> None:
    """Whether libxl has nothing to say, or nobody reads."""
    carried = _Carried()
    os.set_blocking(carried.libxl, False)
    carried.sink.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while full:
            os.write(carried.libxl, bytes(1 << 16))
    os.close(carried.daemon)
    assert isinstance(carried.end(), GivenUp)
    os.close(carried.libxl)


def test_a_stream_whose_reader_is_gone() -> None:
    carried = _Carried()
    carried.outside.close()
    os.write(carried.libxl, b"memory")
    assert isinstance(carried.end(), OSError)
    os.close(carried.libxl)
    os.close(carried.daemon)


@pytest.mark.system
@ensureDeferred
async def test_a_datapath_is_asked_for_its_disk(short_tmp: Path) -> None:
    async with Hosts(short_tmp) as hosts:
        exporter = await hosts.disk(size=5 << 20)
        long = short_tmp / ("l" * 120)
        long.mkdir()
        (long / "nbd.sock").symlink_to(exporter.socket)
        connection, size, flags = xen_disks._negotiated(DomainDisk("0", str(long / "nbd.sock"), "disk"))
        connection.close()
        assert size == 5 << 20
        assert flags & 1
        assert not flags & 2
        with pytest.raises(OSError, match="no export missing"):
            xen_disks._negotiated(DomainDisk("0", str(exporter.socket), "missing"))


@ensureDeferred
async def test_a_host_without_xen(tmp_path: Path) -> None:
    assert "libx" in await call(reactor, "destroy", "nobody", tmp_path, 30)
    assert await call(reactor, "destroy", "nobody", tmp_path, 0.001) == "libxl took longer than 0.001 seconds"
    settings = Config(state_dir=tmp_path / "state", domains="xen", listen=("tcp:0:interface=127.0.0.1",))
    with pytest.raises(OSError, match="Xen's domains on host .* cannot be found: libx"):
        await defer.Deferred.fromCoroutine(open_daemon(settings, reactor))
