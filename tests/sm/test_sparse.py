"""Disks that are almost empty: their holes cost neither time nor room."""

from __future__ import annotations

import random
import uuid
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.sm.two_hosts import MIB, Host, begin_copy, compare, guest_on, image, open_sr, say, two_hosts, until
from xapi_migrate.sm.interfaces import CopyState
from xapi_migrate.sm.timeouts import SMTimeouts

pytestmark = pytest.mark.system

TIB = 1 << 40
PIECES = 16
"""Pieces of 512 KiB, all over the disk."""


async def make_sparse(host: Host) -> str:
    vdi = str(uuid.uuid4())
    await host.sr.vdi_create(vdi, TIB)
    async with guest_on(host, vdi) as guest:
        for number in range(PIECES):
            await guest.client.write(number * (TIB // PIECES) + 4096, random.Random(number).randbytes(MIB // 2))
        await guest.client.flush()
    await host.sr.vdi_detach(vdi)
    return vdi


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def case(sender: str, receiver: str, secure: bool, most: int, *, usual: bool = False) -> object:
    name = f"{sender}-{receiver}-{'nbd-tls' if secure else 'iscsi'}"
    return pytest.param(sender, receiver, secure, most, id=name, marks=() if usual else pytest.mark.every_cell)


@pytest.mark.parametrize(
    ("sender", "receiver", "secure", "most"),
    [
        case("raw", "raw", False, 16 * MIB, usual=True),
        case("raw", "raw", True, 16 * MIB),
        case("qcow2", "qcow2", False, 16 * MIB, usual=True),
        # a hole of a raw image is written as zeroes, for which qcow2 has a table entry of 8 bytes in each 64 KiB
        case("raw", "qcow2", False, 160 * MIB),
        case("raw", "qcow2", True, 160 * MIB),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_terabyte_of_holes(
    tmp_path: Path, sender: str, receiver: str, secure: bool, most: int, request: Any
) -> None:
    async with two_hosts(tmp_path, sender, receiver, SMTimeouts()) as hosts:
        ours, theirs = (
            Host(host.services, open_sr(host.services, host.folder / "sr", kind, limit=4 * TIB), host.folder)
            for host, kind in zip(hosts, (sender, receiver), strict=True)
        )
        for host in (ours, theirs):
            await host.sr.attach()
        vdi = await make_sparse(ours)
        began = reactor.seconds()
        fresh, _ = await begin_copy(ours, theirs, vdi, TIB, secure=secure)
        await until(ours, "copy-1", CopyState.READY)
        ready = reactor.seconds() - began
        await ours.sr.copy_finish("copy-1")
        assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        took = reactor.seconds() - began
        there = image(theirs, fresh)
        say(request, f"ready {ready:.2f} s, {took:.2f} s in all, {allocated(there) >> 10} KiB there")
        assert allocated(there) < most
        assert await compare(image(ours, vdi), there) == ""
        assert took < 60
        await ours.sr.copy_cancel("copy-1")
