"""`make test-lvm`: sm_lvm's checks on real LVM, in a small Debian machine under QEMU. Says "N passed, M failed".

The machine is built once from Debian's packages (root, mmdebstrap, the network) and kept in .cache; each run has a
copy on write of it, this tree on a disk of its own, and two disks full of old data for the volume groups.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
TREE = HERE.parents[2]
CACHE = TREE / ".cache" / "lvm-vm"
PACKAGES = (
    "lvm2", "thin-provisioning-tools", "udev", "kmod", "iproute2", "procps", "fuse3", "python3",
    "qemu-utils", "qemu-system-common", "qemu-block-extra", "tgt", "libiscsi-bin", "nbdkit",
)  # fmt: skip
MODULES = ("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
LIMIT = 40 * 60
"""Seconds for the whole run of the machine."""
DISK = 320 << 20
NOT_NEEDED = ("mypy", "mypyc", "ruff", "pip", "setuptools", "lxml-stubs")


def sh(*argv: str | Path, **options: object) -> str:
    done = subprocess.run([str(word) for word in argv], check=False, text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(
            f"test-lvm: {' '.join(str(word) for word in argv)} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return str(done.stdout)


def machine() -> Path:
    """The folder with root.img, vmlinuz and modules/ (those of the memory disk) of the machine."""
    place = CACHE / hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    if (place / "root.img").exists():
        return place
    print("test-lvm: building the machine (once, a minute or two)", flush=True)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        root = work / "root"
        drop = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("man", "locale", "doc")]
        options = ["--mode=root", "--variant=minbase", "--aptopt=APT::Install-Recommends false", *drop]
        sh("mmdebstrap", *options, "--include=" + ",".join(PACKAGES), "bookworm", root)
        kernel = re.search(r"Depends: (linux-image-\S+)", sh("apt-cache", "depends", "linux-image-cloud-amd64"))
        if kernel is None:
            sys.exit("test-lvm: apt knows no package linux-image-cloud-amd64: run apt-get update")
        sh("apt-get", "download", kernel[1], cwd=work)
        sh("dpkg-deb", "-x", next(work.glob("*.deb")), work / "kernel")
        modules = next((work / "kernel/lib/modules").iterdir())
        shutil.copytree(modules, root / "usr/lib/modules" / modules.name)
        sh("chroot", root, "depmod", modules.name)
        (root / "project").mkdir()
        (place / "modules").mkdir(exist_ok=True)
        for module in MODULES:
            shutil.copy(next(modules.glob(f"kernel/**/{module}.ko")), place / "modules")
        shutil.copy(next((work / "kernel/boot").glob("vmlinuz-*")), place / "vmlinuz")
        sh("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", root, work / "root.img", "1500M")
        (work / "root.img").rename(place / "root.img")  # last: it says that all is there
    return place


def memory_disk(place: Path, work: Path) -> Path:
    """What finds the machine's disks."""
    tree = work / "initrd"
    shutil.copytree(place / "modules", tree)
    for folder in ("bin", "dev", "root"):
        (tree / folder).mkdir()
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy(HERE / "initrd_init", tree / "init")
    (tree / "init").chmod(0o755)
    sh("sh", "-c", 'find . | cpio --quiet -o -H newc >"$0"', work / "initrd.cpio", cwd=tree)
    return work / "initrd.cpio"


def project(work: Path, arguments: list[str]) -> Path:
    """A disk with this tree as it is, and the Python packages of its .venv."""
    tree = work / "tree"
    tree.mkdir()
    listed = sh("git", "-C", TREE, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in (name for name in listed if name and (TREE / name).is_file()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, tree / name)
    (packages,) = (TREE / ".venv/lib").glob("python3.*/site-packages")
    if packages.parent.name != "python3.11":
        sys.exit(f"test-lvm: the machine has Python 3.11, .venv has {packages.parent.name}")
    left_out = shutil.ignore_patterns(*NOT_NEEDED, "*.pth", "__editable__*", "__pycache__")
    shutil.copytree(packages, tree / "site-packages", ignore=left_out)
    (tree / "arguments").write_text("\n".join(["plugins/sm_lvm/vm/checks_on_lvm.py", *arguments]))
    sh("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, work / "project.img", "700M")
    shutil.rmtree(tree)
    return work / "project.img"


def run(place: Path, work: Path, arguments: list[str]) -> int:
    """Boot, show what it prints, and answer with the status that it ends with."""
    sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", place / "root.img", work / "root.qcow2")
    disks = [f"file={work}/root.qcow2,format=qcow2", f"file={project(work, arguments)},format=raw,readonly=on"]
    for name in ("t", "r"):
        with (work / f"{name}.img").open("wb") as disk:
            for _ in range(DISK >> 20):
                disk.write(b"old data" * (1 << 17))
        # the guest may discard, and finds what it had there before: such disks exist
        disks.append(f"file={work}/{name}.img,format=raw,discard=ignore")
    argv = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024"]
    argv += ["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none"]
    argv += ["-kernel", str(place / "vmlinuz"), "-initrd", str(memory_disk(place, work))]
    argv += ["-append", "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"]
    for disk in disks:
        argv += ["-drive", f"if=virtio,cache=unsafe,{disk}"]
    seen, deadline = "", time.monotonic() + LIMIT
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as qemu:
        assert qemu.stdout is not None
        watch = threading.Timer(LIMIT, qemu.kill)
        watch.start()
        try:
            for line in qemu.stdout:
                print(line, end="", flush=True)
                seen += line
        finally:
            watch.cancel()
            qemu.kill()
    status = re.findall(r"^VM-STATUS (\d+)\s*$", seen, re.MULTILINE)
    if len(status) != 1:
        print(f"test-lvm: the machine ended without a verdict{' (time limit)' if time.monotonic() > deadline else ''}")
        return 1
    count = {
        what: sum(map(int, re.findall(rf"\b(\d+) {what}", _summary(seen)))) for what in ("passed", "failed", "error")
    }
    print(f"test-lvm: {count['passed']} passed, {count['failed'] + count['error']} failed")
    return int(status[0]) or int(count["passed"] == 0)


def _summary(seen: str) -> str:
    found = re.findall(r"^=+ (.* in [\d.]+s.*) =+\s*$", seen, re.MULTILINE)
    return found[-1] if found else ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="lvm-vm-") as name:
        sys.exit(run(machine(), Path(name), sys.argv[1:]))
