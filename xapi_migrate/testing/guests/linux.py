"""A Linux guest that counts: Debian's cloud kernel, a memory disk with its drivers, and `linux_init` as only program.

The disk boots by itself (the kernel lies in its first sectors, `linux_loader` starts it), so nothing but the disk has
to be on the host where the guest arrives. It prints what the ticker prints, about three seconds after its start.
Needs apt-get and dpkg-deb, the network once (27 MB, then from the cache), and a guest with 128 MiB of memory.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import tempfile
import zlib
from importlib import resources
from pathlib import Path

import attrs
from twisted.internet import reactor, utils

from xapi_migrate.processes.in_thread import in_thread
from xapi_migrate.testing.guests.ticker import SECTOR, Ticker

MINIMUM_MEMORY = 128 << 20
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "evdev", "button",
)  # fmt: skip
_META = "linux-image-cloud-amd64"
_REAL_SECTORS = 116
_COMMAND_LINE = 0xE000
_PIECES = 0x1E0


@attrs.frozen
class LinuxGuest:
    """Parameters. `memory` MiB are dirtied at `rate` MiB/s; `writes` KiB/s are written to the disk besides the
    counter, in the 8 MiB behind the counter's `span` sectors; `tick_ms` milliseconds between two numbers."""

    tick_ms: int = 10
    span: int = 2000
    memory: int = 0
    rate: int = 0
    writes: int = 0


@attrs.frozen
class LinuxImage:
    """An image that was built. `data` is the first sector of the counter's area on the boot disk."""

    path: Path
    guest: LinuxGuest
    data: int

    def lost(self, printed: list[int]) -> list[int]:
        """As Ticker.lost."""
        return Ticker(span=self.guest.span).lost(self.path, printed, first=self.data)


class GuestBuildFailed(Exception):
    """The Linux guest could not be built; the text says why."""


async def _run(program: str, *args: str, cwd: Path | None = None) -> str:
    out, err, code = await utils.getProcessOutputAndValue(
        program, args, env=os.environ, path=str(cwd) if cwd else None, reactor=reactor
    )
    if code:
        words = err.decode("utf-8", "replace").strip()
        raise GuestBuildFailed(f"{program} {' '.join(args)} ended with {code}: {words[-500:]}")
    return str(out, "utf-8", "replace")


def _cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A newc archive of path -> (mode, content)."""
    archive = bytearray()
    entries = [*files.items(), ("TRAILER!!!", (0, b""))]
    for number, (name, (mode, content)) in enumerate(entries, 1):
        encoded = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _memory_disk(tree: Path) -> bytes:
    files: dict[str, tuple[int, bytes]] = {"m": (0o040755, b"")}
    init = resources.files(__package__).joinpath("linux_init").read_bytes()
    files["init"] = (0o100755, init)
    found = {path.stem: path for path in tree.glob("lib/modules/*/kernel/**/*.ko")}
    for name in MODULES:
        if name not in found:
            raise GuestBuildFailed(f"the kernel package has no module {name}")
        files[f"m/{name}.ko"] = (0o100644, found[name].read_bytes())
    return gzip.compress(_cpio(files), 6, mtime=0)


async def _kernel(cache_dir: Path) -> tuple[Path, Path]:
    """The kernel and the memory disk, from the cache or built now."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    said = await _run("apt-cache", "depends", _META)
    match = re.search(r"Depends: (linux-image-\S+)", said)
    if match is None:
        raise GuestBuildFailed(f"apt knows no package {_META}: run apt-get update")
    init = resources.files(__package__).joinpath("linux_init").read_bytes()
    place = cache_dir / f"{match[1]}-{zlib.crc32(init):08x}"
    kernel, memory_disk = place / "vmlinuz", place / "initrd.gz"
    if memory_disk.exists():
        return kernel, memory_disk
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir) as name:
        work = Path(name)
        await _run("apt-get", "download", match[1], cwd=work)
        (package,) = work.glob("*.deb")
        await _run("dpkg-deb", "-x", str(package), str(work / "tree"))
        packed = await in_thread(_memory_disk, work / "tree")
        (image,) = (work / "tree" / "boot").glob("vmlinuz-*")
        image.replace(kernel)
        (work / "initrd.gz").write_bytes(packed)
        (work / "initrd.gz").replace(memory_disk)  # last: it says that both are there
    return kernel, memory_disk


def _sectors(data: bytes) -> int:
    return -(-len(data) // SECTOR)


def _write(path: Path, size: int, kernel: bytes, memory_disk: bytes, guest: LinuxGuest) -> int:
    """Lay the pieces out as linux_loader expects them; the first sector behind them."""
    setup = (kernel[0x1F1] or 4) + 1
    if kernel[0x202:0x206] != b"HdrS":
        raise GuestBuildFailed("the kernel is not a bzImage")
    system = kernel[setup * SECTOR :]
    kernel_at = 1 + _REAL_SECTORS
    memory_disk_at = kernel_at + _sectors(system)
    data = (memory_disk_at + _sectors(memory_disk) + 7) // 8 * 8
    preferred, needed = struct.unpack_from("<QI", kernel, 0x258)
    address = (preferred + needed + 0xFFF) & ~0xFFF  # behind all that the kernel unpacks itself to

    real = bytearray(_REAL_SECTORS * SECTOR)
    real[: setup * SECTOR] = kernel[: setup * SECTOR]
    real[0x210] = 0xFF  # a loader without a number
    real[0x211] |= 0x80  # the heap's end is valid
    struct.pack_into("<II", real, 0x218, address, len(memory_disk))
    struct.pack_into("<H", real, 0x224, 0xDE00)
    struct.pack_into("<I", real, 0x228, 0x10000 + _COMMAND_LINE)
    options = {**attrs.asdict(guest), "data": data}
    line = "quiet loglevel=0 panic=-1 mitigations=off " + " ".join(f"{key}={value}" for key, value in options.items())
    real[_COMMAND_LINE : _COMMAND_LINE + len(line) + 1] = line.encode() + b"\0"

    loader = bytearray(resources.files(__package__).joinpath("linux_loader.bin").read_bytes())
    pieces = (kernel_at, _sectors(system), 0x100000, memory_disk_at, _sectors(memory_disk), address)
    struct.pack_into("<6I", loader, _PIECES, *pieces)
    smallest = (data + guest.span + 16384 + 64) * SECTOR
    if size < smallest:
        raise GuestBuildFailed(f"the disk must hold at least {smallest} bytes")
    with path.open("wb") as file:
        file.write(loader + real)
        for at, piece in ((kernel_at, system), (memory_disk_at, memory_disk)):
            file.seek(at * SECTOR)
            file.write(piece)
        file.truncate(size)
    return data


async def linux_image(path: Path, cache_dir: Path, size: int, guest: LinuxGuest | None = None) -> LinuxImage:
    """Write a raw disk of `size` bytes (sparse) to `path` that boots into the guest. GuestBuildFailed."""
    guest = guest or LinuxGuest()
    kernel, memory_disk = await _kernel(cache_dir)

    def write() -> int:
        return _write(path, size, kernel.read_bytes(), memory_disk.read_bytes(), guest)

    return LinuxImage(path, guest, await in_thread(write))
