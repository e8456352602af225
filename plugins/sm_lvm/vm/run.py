"""`make test-lvm`: sm_lvm's checks on real LVM, in a small Debian machine under QEMU. Says "N passed, M failed".

Beside the machine's own disks it has two full of old data, for the volume groups.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[2]
sys.path.insert(0, str(TREE))

from tests import debian_vm  # noqa: E402

CACHE = TREE / ".cache" / "lvm-vm"
PACKAGES = (
    "lvm2", "thin-provisioning-tools", "udev", "kmod", "iproute2", "procps", "fuse3", "python3",
    "qemu-utils", "qemu-system-common", "qemu-block-extra", "tgt", "libiscsi-bin", "nbdkit",
)  # fmt: skip
MODULES = ("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
LIMIT = 40 * 60
"""Seconds for the whole run of the machine."""
DISK = 320 << 20


def machine() -> Path:
    """The folder with root.img, vmlinuz and modules/ (those of the memory disk) of the machine."""
    place = CACHE / hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    if (place / "root.img").exists():
        return place
    print("test-lvm: building the machine (once, a minute or two)", flush=True)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        root = debian_vm.root(work, PACKAGES)
        vmlinuz, modules = debian_vm.kernel(work, "cloud-amd64")
        shutil.copytree(modules, root / "usr/lib/modules" / modules.name)
        debian_vm.sh("chroot", root, "depmod", modules.name)
        (place / "modules").mkdir(exist_ok=True)
        for module in MODULES:
            shutil.copy(next(modules.glob(f"kernel/**/{module}.ko")), place / "modules")
        shutil.copy(vmlinuz, place / "vmlinuz")
        # last: it says that all is there
        debian_vm.disk(root, work / "root.img", "1500M").rename(place / "root.img")
    return place


def run(place: Path, work: Path, arguments: list[str]) -> int:
    """Boot, show what it prints, and answer with the status that it ends with."""
    overlay = work / "root.qcow2"
    debian_vm.sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", place / "root.img", overlay)
    project = debian_vm.project_disk(work, ["plugins/sm_lvm/vm/checks_on_lvm.py", *arguments])
    disks = [f"file={overlay},format=qcow2", f"file={project},format=raw,readonly=on"]
    for name in ("t", "r"):
        with (work / f"{name}.img").open("wb") as disk:
            for _ in range(DISK >> 20):
                disk.write(b"old data" * (1 << 17))
        # the guest may discard, and finds what it had there before: such disks exist
        disks.append(f"file={work}/{name}.img,format=raw,discard=ignore")
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]
    argv += ["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none"]
    argv += ["-kernel", str(place / "vmlinuz")]
    argv += ["-initrd", str(debian_vm.memory_disk(work, place / "modules", HERE / "initrd_init"))]
    argv += ["-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"]
    for disk_argument in disks:
        argv += ["-drive", f"if=virtio,cache=unsafe,{disk_argument}"]
    return debian_vm.verdict("test-lvm", argv, LIMIT)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lvm-vm-") as name:
        sys.exit(run(machine(), Path(name), sys.argv[1:]))
