"""Disks that answer with I/O errors: what the client is told, and what the matrix cannot wait for."""

from __future__ import annotations

import pytest

from tests.faults.blows import BLOWS
from tests.faults.clients import Client
from tests.faults.ground import Ground
from tests.faults.points import Point

pytestmark = pytest.mark.system

STRUCK = {blow.name: blow for blow in BLOWS}
COPY, READY, SUSPENDED = Point("sender", "3.5"), Point("sender", "3.7"), Point("sender", "4.4")


@pytest.mark.parametrize(
    ("side", "point", "step"),
    [("sender", COPY, "3.6"), ("receiver", COPY, "3.6"), ("receiver", READY, "4.4")],
    ids=["sender-copy", "receiver-copy", "receiver-ready"],
)
def test_the_client_is_told_whose_disk_it_was(ground: Ground, side: str, point: Point, step: str) -> None:
    """VM, both hosts, disk, step, and what failed there."""
    client = Client()
    ground.open()
    sender, port = ground.sender, ground.link.requests.port
    assert ground.run(point, STRUCK[f"{side} disk error"], client) == "sender"
    assert client.told["status"] == "failure"
    code, _, source, destination, reason = client.told["error_info"]
    assert (code, source, destination) == ("VM_MIGRATE_FAILED", sender.name, f"127.0.0.1:{port}")
    assert ground.made is not None
    disks = [image.stem for image in ground.world.images(sender, ground.made.uuid)]
    what = "cannot be read at the sending host" if side == "sender" else "cannot be written at the receiving host"
    assert f"{what}: Input/output error (last step {step}" in reason
    assert any(f"VDI {disk}" in reason for disk in disks), reason


@pytest.mark.parametrize(
    ("side", "what"), [("sender", "read at the sending"), ("receiver", "written at the receiving")]
)
def test_a_disk_that_fails_when_all_is_copied(ground: Ground, side: str, what: str) -> None:
    """Nothing more is read or written of it, unless the guest wrote in that moment: then the client is told."""
    client = Client()
    if ground.run(SUSPENDED, STRUCK[f"{side} disk error"], client) == "sender":
        assert f"cannot be {what} host" in " ".join(client.told["error_info"])
    else:
        assert client.told["status"] == "success"
