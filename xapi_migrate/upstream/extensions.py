"""The executables by which an existing xapi answers our calls itself: put there, and taken away again without a trace.

What was put where stands in a manifest with the digest of each file. Only what is in it is ever changed or removed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import attrs

from ..whole_file import DRAFT, write_whole
from .calls import NEW_CALLS
from .extension_program import program

NAMES = NEW_CALLS
FOLDER = Path("/etc/xapi.d/extensions")
"""Where xapi looks."""


class NotInstalled(Exception):
    """The text is a sentence."""


@attrs.frozen
class Manifest:
    """`files`: path -> SHA-256 of what was written; `folders` that were made."""

    files: dict[str, str]
    folders: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Empty if there is none. NotInstalled if it cannot be read."""
        try:
            raw = json.loads(path.read_text())
            return cls({str(k): str(v) for k, v in raw["files"].items()}, tuple(map(str, raw["folders"])))
        except FileNotFoundError:
            return cls({}, ())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise NotInstalled(f"The manifest {path} cannot be read: {error}.") from None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"files": self.files, "folders": self.folders}, indent=1) + "\n")


def install(manifest: Path, folder: Path, socket_path: Path) -> list[Path]:
    """Write the executables, or write them anew. NotInstalled, and nothing has been changed, if a file that is not ours
    is in the way. OSError."""
    known = Manifest.load(manifest)
    paths = [folder / name for name in NAMES]
    for path in paths:
        if path.is_symlink() or (path.exists() and _digest(path) != known.files.get(str(path))):
            raise NotInstalled(f"{path} is there already, and is not what was installed: it is left as it is.")
    missing = [str(parent) for parent in (*reversed(folder.parents), folder) if not parent.exists()]
    made = [*known.folders, *missing]
    texts = {path: program(path.name, str(socket_path)) for path in paths}
    files = {**known.files, **{str(path): hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}}
    # written down first: what is interrupted now is removed by an uninstall all the same
    Manifest(files, tuple(made)).save(manifest)
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    for path, text in texts.items():
        write_whole(path, text, 0o755)
    return paths


def uninstall(manifest: Path) -> tuple[list[Path], list[Path]]:
    """Remove what was installed: the paths that were, and those that somebody has changed since, which are kept, and
    stay in the manifest. OSError."""
    known = Manifest.load(manifest)
    removed, kept = [], []
    for name, digest in known.files.items():
        path = Path(name)
        path.with_name(path.name + DRAFT).unlink(missing_ok=True)
        if path.is_symlink() or (path.exists() and _digest(path) != digest):
            kept.append(path)
        elif path.exists():
            path.unlink()
            removed.append(path)
    for folder in reversed(known.folders):
        try:
            Path(folder).rmdir()
        except OSError:
            pass  # gone, or somebody uses it
    if kept:
        Manifest({str(path): known.files[str(path)] for path in kept}, known.folders).save(manifest)
    else:
        manifest.unlink(missing_ok=True)
    return removed, kept


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
