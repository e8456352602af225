"""The npm packages that tests use, installed once for each lock file into .cache/npm of the project."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

NODE = Path(__file__).parent / "node"
CACHE = Path(__file__).parents[2] / ".cache" / "npm"
LISTS = ("package.json", "package-lock.json")


def installed_packages() -> Path:
    """The node_modules folder; filled by npm if it is not what the lock file says. RuntimeError if that fails."""
    CACHE.mkdir(parents=True, exist_ok=True)
    stamp = CACHE / "installed"
    key = hashlib.sha256(b"".join((NODE / name).read_bytes() for name in LISTS)).hexdigest()
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != key:
            stamp.unlink(missing_ok=True)
            for name in LISTS:
                shutil.copy(NODE / name, CACHE / name)
            argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(argv, cwd=CACHE, capture_output=True, text=True, check=False, timeout=240)
            if done.returncode:
                raise RuntimeError(f"npm could not install what the tests need:\n{done.stderr[-2000:]}")
            stamp.write_text(key)
    return CACHE / "node_modules"
