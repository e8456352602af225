"""The bulk copy of one disk between two hosts' storage, in turn with QEMU's own mirror over NBD: seconds until all
of it has been copied once (`ready`), and what the destination allocates.

    python -m bench.bulk_copy [--rounds N] [--disk MIB] [--filled MIB] [--folder DIR] [--json FILE]

All cross the loopback device, from and into sparse raw images on the same file system. The data are random pieces of
1 MiB, evenly spread over the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sm_file.driver import FileDriver
from twisted.internet import defer, task

from bench.by_hand import Monitor
from xapi_migrate.lab.host import free_port
from xapi_migrate.sm.interfaces import CopyState, SRConfig
from xapi_migrate.sm.repository import Repository
from xapi_migrate.sm.services import SMServices
from xapi_migrate.sm.timeouts import SMTimeouts

MIB = 1 << 20
BY_HAND, ISCSI, NBD = "QEMU's mirror", "ours, iSCSI", "ours, NBD with TLS"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.bulk_copy", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="copies of each kind (default 3)")
    parser.add_argument("--disk", type=int, default=4096, help="MiB of the disk (default 4096)")
    parser.add_argument("--filled", type=int, default=1024, help="MiB of it that hold data (default 1024)")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="where the images are (/dev/shm)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args()


def make_source(path: Path, size: int, filled: int) -> None:
    """`filled` pieces of 1 MiB in `size` MiB."""
    with path.open("wb") as file:
        file.truncate(size * MIB)
        for number in range(filled):
            file.seek(number * size // filled * MIB)
            file.write(os.urandom(MIB))


class Daemon:
    """A qemu-storage-daemon by hand."""

    def __init__(self, folder: Path, image: Path) -> None:
        folder.mkdir()
        socket = folder / "qmp.sock"
        argv = ["qemu-storage-daemon", "--chardev", f"socket,id=m,path={socket},server=on,wait=off",
                "--monitor", "chardev=m"]  # fmt: skip
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self.monitor = Monitor(socket)
        self.monitor.ask("blockdev-add", driver="file", node_name="file", filename=str(image), discard="unmap")
        self.monitor.ask("blockdev-add", driver="raw", node_name="disk", file="file", discard="unmap")

    def end(self) -> None:
        self.monitor.close()
        self._process.kill()
        self._process.wait()


def by_hand(folder: Path, source: Path) -> dict[str, float]:
    """blockdev-mirror from one daemon into the NBD export of another."""
    destination = folder / "destination.raw"
    with destination.open("wb") as file:
        file.truncate(source.stat().st_size)
    began = time.monotonic()
    here, there = Daemon(folder / "here", source), Daemon(folder / "there", destination)
    try:
        address = {"host": "127.0.0.1", "port": str(free_port())}
        there.monitor.ask("nbd-server-start", addr={"type": "inet", "data": address})
        there.monitor.ask("block-export-add", type="nbd", id="disk", node_name="disk", writable=True)
        server = {"type": "inet", **address}
        here.monitor.ask("blockdev-add", driver="nbd", node_name="to", server=server, export="disk",
                         discard="unmap", detect_zeroes="unmap")  # fmt: skip
        here.monitor.ask("blockdev-mirror", job_id="copy", device="disk", target="to", sync="full")
        here.monitor.event("BLOCK_JOB_READY", device="copy")
        seconds = time.monotonic() - began
    finally:
        here.end()
        there.end()
    return {"seconds": seconds, "allocated_mib": allocated(destination, source)}


async def ours(reactor: Any, folder: Path, source: Path, secure: bool) -> dict[str, float]:
    """VDI.get_url and VDI.copy between two hosts' storage."""
    size, vdi, fresh = source.stat().st_size, str(uuid.uuid4()), str(uuid.uuid4())
    services = []
    srs = []
    for name in ("T", "R"):
        (folder / name / "sr").mkdir(parents=True)
        services.append(SMServices(reactor, folder / name / "state", SMTimeouts(poll=0.1)))
        record = SRConfig(str(uuid.uuid4()), "file", {"location": str(folder / name / "sr"), "format": "raw"})
        srs.append(Repository(record, FileDriver().open_sr(record), services[-1]))
        await srs[-1].attach()
    (folder / "T" / "sr" / f"{vdi}.raw").symlink_to(source)
    await srs[0].scan()
    try:
        began = time.monotonic()
        await srs[1].vdi_create(fresh, size)
        url = await srs[1].vdi_get_url(fresh, "bench", "127.0.0.1", secure)
        await srs[0].vdi_copy(vdi, url, "copy", None)
        while (status := await srs[0].copy_state("copy")).state is CopyState.PENDING:
            await task.deferLater(reactor, 0.01)
        seconds = time.monotonic() - began
        if status.state is not CopyState.READY:
            raise RuntimeError(status.error)
        await srs[0].copy_finish("copy")
        await srs[0].copy_cancel("copy")
        await srs[1].vdi_close_url(fresh, "bench")
        return {"seconds": seconds, "allocated_mib": allocated(folder / "R" / "sr" / f"{fresh}.raw", source)}
    finally:
        for one in services:
            await one.stop()


def allocated(destination: Path, source: Path) -> float:
    """MiB that the copy takes up. RuntimeError if it is not equal."""
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), str(destination)],
                   check=True, capture_output=True)  # fmt: skip
    return destination.stat().st_blocks * 512 / MIB


async def measure(reactor: Any, options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    source = folder / "source.raw"
    make_source(source, options.disk, options.filled)
    kinds: dict[str, Callable[[Path], Awaitable[dict[str, float]]]] = {
        BY_HAND: lambda where: _at_once(by_hand(where, source)),
        ISCSI: lambda where: ours(reactor, where, source, False),
        NBD: lambda where: ours(reactor, where, source, True),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for number in range(options.rounds):
        for name, copy in kinds.items():
            where = folder / "round"
            where.mkdir()
            try:
                one = await copy(where)
            finally:
                shutil.rmtree(where)
            found[name].append(one)
            print(f"{number + 1:2} {name:20} {one['seconds']:6.2f} s, {one['allocated_mib']:.0f} MiB", flush=True)
    return found


def _at_once(value: dict[str, float]) -> defer.Deferred[dict[str, float]]:
    return defer.succeed(value)


async def main(reactor: Any, options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bulk", dir=options.folder))
    try:
        found = await measure(reactor, options, folder)
    finally:
        shutil.rmtree(folder)
    print(f"\n{'':20} s, median      min-max   MB/s  to QEMU's")
    peer = statistics.median(one["seconds"] for one in found[BY_HAND])
    for name, copies in found.items():
        seconds = [one["seconds"] for one in copies]
        middle = statistics.median(seconds)
        speed = options.filled * MIB / 1e6 / middle
        print(f"{name:20} {middle:9.2f} {min(seconds):6.2f}-{max(seconds):.2f} {speed:6.0f} {peer / middle:8.2f} x")
    if options.json:
        options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    asked = parsed()
    task.react(lambda reactor: defer.ensureDeferred(main(reactor, asked)))
