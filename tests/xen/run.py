"""`make test-xen`: the Xen driver on real Xen, whose host is a small Debian machine under QEMU. Says "N passed, M
failed".

Guests on it are PVH, by nested paging, which QEMU emulates as well. What an emulated processor must not offer, and
what Xen must be told of it, stands in docs/decisions/xen-under-tcg.md.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
sys.path.insert(0, str(TREE))

from tests import debian_vm  # noqa: E402

CACHE = TREE / ".cache" / "xen-vm"
PACKAGES = (
    "xen-hypervisor-4.17-amd64", "xen-utils-4.17", "xen-utils-common", "xenstore-utils", "libxenmisc4.17",
    "bridge-utils",
    "udev", "kmod", "iproute2", "procps", "fuse3", "python3",
    "qemu-utils", "qemu-system-common", "qemu-block-extra", "tgt", "libiscsi-bin", "nbdkit",
)  # fmt: skip
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
    "crc32c_generic", "jbd2", "mbcache", "crc16", "ext4",
)  # fmt: skip
GUEST_MODULES = ("xen-netfront", "xen-blkfront")
NOT_NEEDED = (
    "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/net/ethernet", "drivers/net/wireless", "drivers/usb",
    "drivers/iio", "drivers/staging", "sound", "net/mac80211",
)  # fmt: skip
LIMIT = 40 * 60
"""Seconds for the whole run of the machine."""
CPU = "EPYC,-smap,-smep,-monitor,-rdtscp,-avx,-avx2,-f16c,-fma,-xsave,+svm,+npt"
XEN = (
    "console=com1 dom0_mem=1200M,max:1200M dom0_max_vcpus=1 noreboot loglvl=warning guest_loglvl=warning cpuidle=no "
    "spec-ctrl=no,eager-fpu xpti=no pv-l1tf=no"
)


def machine() -> Path:
    """The folder with root.img, xen, vmlinuz, modules/ (those of the memory disk), guest-vmlinuz and guest-modules/."""
    place = CACHE / hashlib.sha256(" ".join(PACKAGES + MODULES + GUEST_MODULES).encode()).hexdigest()[:12]
    if (place / "root.img").exists():
        return place
    print("test-xen: building the machine (once, a minute or two)", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        root = debian_vm.root(work, PACKAGES)
        vmlinuz, modules = debian_vm.kernel(work, "amd64")
        there = shutil.copytree(modules, root / "usr/lib/modules" / modules.name)
        for folder in NOT_NEEDED:
            shutil.rmtree(there / "kernel" / folder)
        debian_vm.sh("chroot", root, "depmod", modules.name)
        _modules(modules, MODULES, place / "modules")
        guests, guests_modules = debian_vm.kernel(work, "cloud-amd64")
        _modules(guests_modules, GUEST_MODULES, place / "guest-modules")
        shutil.copy(vmlinuz, place / "vmlinuz")
        shutil.copy(guests, place / "guest-vmlinuz")
        with gzip.open(next((root / "boot").glob("xen-*-amd64.gz"))) as packed, (place / "xen").open("wb") as xen:
            shutil.copyfileobj(packed, xen)
        # last: it says that all is there
        debian_vm.disk(root, work / "root.img", "1600M").rename(place / "root.img")
    return place


def _modules(source: Path, names: tuple[str, ...], place: Path) -> None:
    place.mkdir()
    for name in names:
        shutil.copy(next(source.glob(f"kernel/**/{name}.ko")), place)


def guests_memory_disk(place: Path, work: Path) -> Path:
    """The guest: busybox, its drivers, and the program that counts."""
    tree = work / "guest"
    shutil.copytree(place / "guest-modules", tree)
    for folder in ("bin", "sbin", "dev", "proc", "sys"):
        (tree / folder).mkdir()
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for source, target in (("guest_init", "init"), ("guest_poweroff", "sbin/poweroff")):
        shutil.copy(HERE / source, tree / target)
        (tree / target).chmod(0o755)
    return debian_vm.pack(tree, work / "guest-initrd")


def run(place: Path, work: Path, arguments: list[str]) -> int:
    """Boot, show what it prints, and answer with the status that it ends with."""
    overlay = work / "root.qcow2"
    debian_vm.sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", place / "root.img", overlay)
    guest = place / "guest-vmlinuz", guests_memory_disk(place, work)
    project = debian_vm.project_disk(work, ["tests/xen/checks_on_xen.py", *arguments], *guest)
    memory_disk = debian_vm.memory_disk(work, place / "modules", HERE / "dom0_initrd_init")
    kernel = f"{place}/vmlinuz console=hvc0 quiet loglevel=3 mitigations=off"
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "1", "-m", "2200"]
    argv += ["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-monitor", "none"]
    argv += ["-serial", f"file:{CACHE}/xen.log", "-serial", "stdio"]
    argv += ["-kernel", str(place / "xen"), "-append", XEN, "-initrd", f"{kernel},{memory_disk}"]
    for disk in (f"file={overlay},format=qcow2", f"file={project},format=raw,readonly=on"):
        argv += ["-drive", f"if=virtio,cache=unsafe,{disk}"]
    return debian_vm.verdict("test-xen", argv, LIMIT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="xen-vm-") as name:
        sys.exit(run(machine(), Path(name), sys.argv[1:]))
