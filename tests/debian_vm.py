"""Small Debian machines under QEMU, for tests that need another kernel than this machine's (`make test-lvm`,
`make test-xen`).

A machine is built once from Debian's packages (root, mmdebstrap, the network) and kept in .cache. Each run has a copy
on write of it and this tree on a disk of its own; what it prints on its console is shown and judged.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
_NOT_NEEDED = ("mypy", "mypyc", "ruff", "pip", "setuptools", "lxml-stubs")


def sh(*argv: str | Path, cwd: Path | None = None) -> str:
    """What the program prints. Ends this one if it fails."""
    done = subprocess.run([str(word) for word in argv], check=False, text=True, capture_output=True, cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(str(word) for word in argv)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def root(work: Path, packages: Iterable[str]) -> Path:
    """A Debian system with these packages and no kernel, and a place for the project."""
    place = work / "root"
    drop = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("man", "locale", "doc")]
    options = ["--mode=root", "--variant=minbase", "--aptopt=APT::Install-Recommends false", *drop]
    sh("mmdebstrap", *options, "--include=" + ",".join(packages), "bookworm", place)
    (place / "project").mkdir()
    return place


def kernel(work: Path, flavour: str) -> tuple[Path, Path]:
    """Debian's kernel, "amd64" or "cloud-amd64", unpacked: the kernel itself and the folder of its modules."""
    named = re.search(r"Depends: (linux-image-\S+)", sh("apt-cache", "depends", f"linux-image-{flavour}"))
    if named is None:
        sys.exit(f"apt knows no package linux-image-{flavour}: run apt-get update")
    place = work / f"kernel-{flavour}"
    place.mkdir()
    sh("apt-get", "download", named[1], cwd=place)
    sh("dpkg-deb", "-x", next(place.glob("*.deb")), place / "files")
    return next((place / "files/boot").glob("vmlinuz-*")), next((place / "files/lib/modules").iterdir())


def pack(tree: Path, archive: Path) -> Path:
    """A memory disk of all that is below `tree`."""
    sh("sh", "-c", 'find . | cpio --quiet -o -H newc >"$0"', archive, cwd=tree)
    return archive


def memory_disk(work: Path, modules: Path, init: Path) -> Path:
    """What finds the machine's disks: busybox, this folder's kernel modules and this first program."""
    tree = work / "initrd"
    shutil.copytree(modules, tree)
    for folder in ("bin", "dev", "root"):
        (tree / folder).mkdir()
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy(init, tree / "init")
    (tree / "init").chmod(0o755)
    return pack(tree, work / "initrd.cpio")


def disk(tree: Path, image: Path, size: str) -> Path:
    """An ext4 image of all that is below `tree`."""
    sh("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image, size)
    return image


def project_disk(work: Path, arguments: Sequence[str], *extra: Path) -> Path:
    """A disk with this tree as it is, the Python packages of its .venv, pytest's arguments and `extra` files."""
    tree = work / "tree"
    tree.mkdir()
    for file in extra:
        shutil.copy(file, tree)
    listed = sh("git", "-C", TREE, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in (name for name in listed if name and (TREE / name).is_file()):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(TREE / name, tree / name)
    (packages,) = (TREE / ".venv/lib").glob("python3.*/site-packages")
    if packages.parent.name != "python3.11":
        sys.exit(f"the machine has Python 3.11, .venv has {packages.parent.name}")
    left_out = shutil.ignore_patterns(*_NOT_NEEDED, "*.pth", "__editable__*", "__pycache__")
    shutil.copytree(packages, tree / "site-packages", ignore=left_out)
    (tree / "arguments").write_text("\n".join(arguments))
    image = disk(tree, work / "project.img", "700M")
    shutil.rmtree(tree)
    return image


def verdict(name: str, argv: Sequence[str], limit: float) -> int:
    """Run the machine for at most `limit` seconds, show what it prints, and say how its tests ended: "N passed, M
    failed", and pytest's status, which it prints as VM-STATUS."""
    seen, deadline = "", time.monotonic() + limit
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as qemu:
        assert qemu.stdout is not None
        watch = threading.Timer(limit, qemu.kill)
        watch.start()
        try:
            for line in qemu.stdout:
                print(line, end="", flush=True)
                seen += line
                if line.startswith("VM-STATUS"):
                    break
        finally:
            watch.cancel()
            qemu.kill()
    status = re.findall(r"^VM-STATUS (\d+)\s*$", seen, re.MULTILINE)
    if len(status) != 1:
        print(f"{name}: the machine ended without a verdict{' (time limit)' if time.monotonic() > deadline else ''}")
        return 1
    count = {
        what: sum(map(int, re.findall(rf"\b(\d+) {what}", _summary(seen)))) for what in ("passed", "failed", "error")
    }
    print(f"{name}: {count['passed']} passed, {count['failed'] + count['error']} failed")
    return int(status[0]) or int(count["passed"] == 0)


def _summary(seen: str) -> str:
    found = re.findall(r"^=+ (.* in [\d.]+s.*) =+\s*$", seen, re.MULTILINE)
    return found[-1] if found else ""
