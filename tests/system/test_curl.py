"""A halted VM is sent by hand: the example script with curl and qemu-img, and each verb twice."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.system.world import World, equal
from xapi_migrate.testing.guests import ticker

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SCRIPT, DOCUMENT = EXAMPLES / "send-halted-vm.sh", EXAMPLES / "halted-vm.xml"
UUID = "5d2f0c7e-3b1a-4c8e-9f60-7a1b2c3d4e5f"
SIZES = (64 << 20, 16 << 20)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """The disks of the example's VM: the first boots, and both hold bytes that stand nowhere else."""
    made = [tmp_path / "system.raw", tmp_path / "data.raw"]
    for image, size in zip(made, SIZES, strict=True):
        ticker.write_image(image, size, ticker.Ticker())
        with image.open("r+b") as file, Path("/dev/urandom").open("rb") as random:
            file.seek(size // 2)
            file.write(random.read(4 << 20))
            file.truncate(size)
    return made


def uri_of(world: World) -> str:
    return next(uri for uri in world.receive() if uri.startswith("http:"))


def only_the_vm(world: World) -> list[str]:
    """What is left on the destination beside the VM, its records and its images."""
    left = world.left_behind(world.destination)
    with world.session(world.destination) as api:
        vm = api.VM.get_record(api.VM.get_by_uuid(UUID))
        vdis = [api.VDI.get_uuid(api.VBD.get_VDI(vbd)) for vbd in vm["VBDs"]]
        its = {"VM halted-vm", *(f"VDI {vdi}" for vdi in vdis), *(f"VBD {api.VBD.get_uuid(v)}" for v in vm["VBDs"])}
    its |= {str(path) for path in world.images(world.destination, UUID)}
    return sorted(set(left) - its)


def command_lines() -> set[str]:
    """Of all processes."""
    seen = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen.add((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return seen


@attrs.define
class Told:
    """An answer: its status and, where it is JSON, what it says."""

    status: int
    says: Any


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., Told]:
    def ask(uri: str, method: str, below: str = "", *options: str) -> Told:
        answer = tmp_path / "answer"
        answer.write_bytes(b"")
        words = ["curl", "-s", "-o", str(answer), "-w", "%{http_code}", "--max-time", "20"]
        words += ["--head"] if method == "HEAD" else ["--request", method]
        done = subprocess.run([*words, *options, uri + below], capture_output=True, text=True, check=True)
        body = answer.read_text()
        return Told(int(done.stdout), json.loads(body) if body.startswith("{") else body)

    return ask


def test_a_shell_script_sends_a_halted_vm(
    world: World, ask: Callable[..., Told], images: list[Path], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    uri = uri_of(world)
    script = subprocess.Popen(
        [SCRIPT, "-", DOCUMENT, *images], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={"PATH": "/usr/bin:/bin", "TMPDIR": str(scratch)},
    )  # fmt: skip
    assert script.stdin is not None
    script.stdin.write(f"{uri}\n")
    script.stdin.flush()
    password, lines = "", set()
    while script.poll() is None:
        lines |= command_lines()
        if not password and (offer := ask(uri, "GET", "/disk/0")).status == 200:
            password = offer.says["password"]
    out, err = script.communicate(timeout=30)
    assert (script.returncode, out, err) == (0, "committed\n", "")
    assert any(line.startswith("qemu-img convert") for line in lines)
    assert password
    assert [line for line in lines if password in line] == []
    assert [line for line in lines if uri in line and "--config" in line] == []
    assert list(scratch.iterdir()) == []

    record = world.vms(world.destination)[UUID]
    assert (record["power_state"], record["name_label"]) == ("Halted", "halted-vm")
    assert "HideFromXenCenter" not in record["other_config"]
    assert record["current_operations"] == {}
    for image, disk in zip(images, world.images(world.destination, UUID), strict=True):
        assert image.stat().st_size == disk.stat().st_size
        assert equal(image, disk)
    world.wait(lambda: not only_the_vm(world), f"left: {only_the_vm(world)}", 10)

    with world.session(world.destination) as api:
        api.VM.start(api.VM.get_by_uuid(UUID), False, False)
    world.wait(lambda: len(world.console(UUID, world.destination).counters) > 10, "it does not boot")
    assert world.ticks(UUID, world.destination)


def test_a_script_that_cannot_go_on_gives_the_migration_up(world: World, images: list[Path]) -> None:
    """The second image is too large for its disk."""
    with images[1].open("r+b") as file:
        file.truncate(SIZES[1] * 2)
    done = subprocess.run(
        [SCRIPT, uri_of(world), DOCUMENT, *images], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "smaller than" in done.stderr
    world.nothing_left(world.destination)
    assert UUID not in world.vms(world.destination)


def test_each_verb_twice(world: World, ask: Callable[..., Told], tmp_path: Path) -> None:
    """The column "repeated, or out of order" of docs/protocol.md, from the offer to the acknowledgement."""
    uri = uri_of(world)
    document = ("--upload-file", str(DOCUMENT))
    other = tmp_path / "other.xml"
    other.write_text(DOCUMENT.read_text().replace("halted-vm", "another-vm"))
    damaged = tmp_path / "damaged.xml"
    damaged.write_text(DOCUMENT.read_text().replace(UUID, "no uuid"))

    # 1.5; nothing but the offer is there, and there is nothing to be asked about it
    assert [ask(uri, "HEAD").status for _ in range(2)] == [200, 200]
    assert ask(uri, "GET").says == ask(uri, "GET").says
    assert ask(uri, "GET").says["outcome"] == "open"
    assert ask(uri, "GET", "/disk/0").status == 409
    assert ask(uri, "PUT", "/control", "--data", "done").status == 409
    for _ in range(2):
        refused = ask(uri, "PUT", "/metadata", "--upload-file", str(damaged))
        assert (refused.status, refused.says["code"]) == (400, "IMPORT_ERROR")
    world.nothing_left(world.destination)

    # 2.1
    assert ask(uri, "PUT", "/metadata", *document).status == 200
    made = set(world.vms(world.destination))
    assert ask(uri, "PUT", "/metadata", *document).status == 200
    assert set(world.vms(world.destination)) == made
    assert len(made) == 1
    assert ask(uri, "PUT", "/metadata", "--upload-file", str(other)).status == 409
    assert ask(uri, "PUT", "/metadata", *document).status == 200

    # 2.2 to 2.5
    for number in ("1", "0"):
        first, second = (ask(uri, "GET", f"/disk/{number}") for _ in range(2))
        assert (first.status, first.says["number"]) == (200, int(number))
        assert first == second
        assert first.says["virtual_size"] == SIZES[int(number)]
    assert ask(uri, "GET", "/disk/2").says["code"] == "HANDLE_INVALID"
    with world.session(world.destination) as api:
        assert len(api.VDI.get_all()) == len(SIZES)

    # a halted VM has no memory to send
    assert ask(uri, "PUT", "/memory", "--upload-file", str(other)).status == 409

    # 5.1
    assert ask(uri, "PUT", "/control", "--data-binary", "done\n").status == 400
    assert ask(uri, "GET", "/control").says == {"outcome": "open", "reason": ""}
    committed = Told(200, {"outcome": "committed", "reason": ""})
    assert [ask(uri, "PUT", "/control", "--data", "done") for _ in range(2)] == [committed] * 2
    assert [ask(uri, "GET", "/control") for _ in range(2)] == [committed] * 2
    assert world.vms(world.destination)[UUID]["power_state"] == "Halted"

    # the tombstone, until it is acknowledged
    assert [ask(uri, "HEAD").status for _ in range(2)] == [200, 200]
    assert [ask(uri, "DELETE") for _ in range(2)] == [committed] * 2
    for method, below, options in (("PUT", "/metadata", document), ("GET", "/disk/0", ()), ("GET", "", ())):
        assert ask(uri, method, below, *options).status == 410
    assert ask(uri, "DELETE", "", "--header", "Acknowledge: aborted") == committed
    assert ask(uri, "DELETE", "", "--header", "Acknowledge: committed") == committed
    gone = Told(404, "Not found.\n")
    assert ask(uri, "DELETE", "", "--header", "Acknowledge: committed") == gone
    assert ask(uri, "GET", "/control") == gone
    assert ask(uri, "PUT", "/metadata", *document) == gone
    assert UUID in world.vms(world.destination)


def test_an_abort_is_told_until_it_is_acknowledged(world: World, ask: Callable[..., Told]) -> None:
    uri = uri_of(world)
    assert ask(uri, "PUT", "/metadata", "--upload-file", str(DOCUMENT)).status == 200
    assert ask(uri, "GET", "/disk/0").status == 200
    first, second = (ask(uri, "DELETE") for _ in range(2))
    assert (first.status, first.says["outcome"]) == (200, "aborted")
    assert first == second
    assert [ask(uri, "HEAD").status for _ in range(2)] == [410, 410]
    for _ in range(2):
        assert ask(uri, "PUT", "/control", "--data", "done") == Told(410, first.says)
        assert ask(uri, "GET", "/control") == first
    assert ask(uri, "PUT", "/metadata", "--upload-file", str(DOCUMENT)).status == 410
    assert ask(uri, "DELETE", "", "--header", "Acknowledge: committed") == first
    assert ask(uri, "DELETE", "", "--header", "Acknowledge: aborted") == first
    assert ask(uri, "DELETE").status == 404
    world.nothing_left(world.destination)
