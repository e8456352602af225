"""The npm package xen-api, the one inside Xen Orchestra: it connects by each of its transports, keeps all objects by
event.from, and migrates."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import threads

from tests.upstream.two_overlaid import two_overlaid
from tests.xenapi.npm import NODE, installed_packages
from tests.xenapi.two_servers import PASSWORD, USER, TwoServers, two_servers


@pytest.fixture(scope="module")
def packages() -> Path:
    return installed_packages()


def run(packages: Path, world: TwoServers, uuid: str, transport: str, cancel: bool) -> dict[str, Any]:
    wish = {
        "packages": str(packages), "source": world.source.url, "destination": world.destination.url, "user": USER,
        "password": PASSWORD, "transport": transport, "vm": uuid, "cancel": cancel,
    }  # fmt: skip
    argv = ["node", str(NODE / "migrate.mjs")]
    done = subprocess.run(argv, input=json.dumps(wish), capture_output=True, text=True, check=False, timeout=140)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.limit(150)
@pytest.mark.parametrize(
    ("transport", "servers"),
    [("auto", two_servers), ("json-rpc", two_servers), ("xml-rpc", two_servers), ("auto", two_overlaid),
     ("xml-rpc", two_overlaid)],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_it_watches_and_migrates(tmp_path: Path, packages: Path, transport: str, servers: Any) -> None:
    async with servers(tmp_path) as world:
        vm = await world.source.new_vm(await world.source.new_sr(), disks=2)
        await world.destination.new_sr()
        uuid = world.source.records.get("VM", vm)["uuid"]
        seen = await threads.deferToThread(run, packages, world, uuid, transport, False)
        assert "error" not in seen
        assert seen["barrier"]
        assert {"VM", "VBD", "VDI", "SR", "VIF", "PIF", "network", "host", "pool", "console"} <= set(seen["types"])
        assert seen["progress"] == sorted(seen["progress"])
        assert seen["statuses"][-1] == "success"
        assert seen["state"] == "Running"
        assert world.destination.records.get("VM", seen["result"])["uuid"] == uuid
        assert world.source.records.refs("VM") == []


@pytest.mark.limit(150)
@pytest.mark.parametrize(
    ("transport", "servers"), [("json-rpc", two_servers), ("xml-rpc", two_servers), ("json-rpc", two_overlaid)]
)
@pytest_twisted.ensureDeferred
async def test_it_cancels(tmp_path: Path, packages: Path, transport: str, servers: Any) -> None:
    async with servers(tmp_path) as world:
        vm = await world.source.new_vm(await world.source.new_sr())
        await world.destination.new_sr()
        world.source.slow()
        uuid = world.source.records.get("VM", vm)["uuid"]
        seen = await threads.deferToThread(run, packages, world, uuid, transport, True)
        assert seen["statuses"][-1] == "cancelled"
        assert seen["error"]
        assert seen["state"] == "Running"
        assert world.source.records.get("VM", vm)["current_operations"] == {}
        await world.until(lambda: not world.destination.records.refs("VM"))
