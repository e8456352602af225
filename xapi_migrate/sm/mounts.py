"""What the kernel holds of a datapath besides its process: the mount of its view, and pages of its image."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VIEW = "view"
"""The file in a datapath's folder that shows the disk's bytes as they are, for tgtd."""


def mounts() -> list[str]:
    """All mount points of this machine."""
    with Path("/proc/self/mounts").open() as table:
        return [line.split()[1].encode().decode("unicode_escape") for line in table]


def unmount_and_remove(folder: Path) -> None:
    """Remove the folder of a datapath whose process is gone: a view whose process was killed is still mounted. Blocks:
    for a thread."""
    if not folder.exists():
        return
    if str(folder / VIEW) in mounts():
        subprocess.run(["fusermount3", "-u", "-z", str(folder / VIEW)], check=False, capture_output=True, timeout=10)
    shutil.rmtree(folder, ignore_errors=True)


def forget_cached(image: Path) -> None:
    """What the kernel could not write and still shows is not to be read by who opens the image next. Blocks: for a
    thread."""
    try:
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
