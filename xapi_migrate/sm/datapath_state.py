"""What a datapath is for and who uses it, as its folder keeps it for a daemon that is started anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.sm.interfaces import ImageFormat, ImageLocation, ImageNode
from xapi_migrate.sm.with_room import write_with_room

DOMAIN, TARGET, COPY, MOVE = "domain", "target", "copy", "move"
"""Who uses it, see datapath.py."""

_STATE = "state.json"


@attrs.frozen
class DatapathOf:
    """What a datapath is for: changes only when its image is exchanged, `turn` times so far."""

    sr: str
    vdi: str
    path: str
    format: str
    virtual_size: int
    read_only: bool
    turn: int = 0
    size: int = 0
    """See ImageLocation."""
    node: dict[str, Any] | None = None
    """The options of an ImageNode, which has no path."""
    secrets: dict[str, str] = attrs.field(factory=dict, repr=False)
    """Those of an ImageNode; after a restart their names only, the process has them."""

    @property
    def location(self) -> ImageLocation | ImageNode:
        if self.node is not None:
            return ImageNode(self.node, ImageFormat(self.format), self.size, self.secrets)
        return ImageLocation(Path(self.path), ImageFormat(self.format), self.size)

    @property
    def is_its_file(self) -> bool:
        """Whether a file on this host has the disk's bytes as they are, and no others."""
        whole = not self.size or Path(self.path).is_block_device()  # tgtd may see what is behind the disk
        return self.node is None and self.format == ImageFormat.RAW.value and whole

    @property
    def keeps_discarded(self) -> bool:
        """Whether what is discarded in the view may be read afterwards: a VHD takes no notice of discards, and what
        they leave on a device is not defined. Zeroes have to be written there. tgtd does that block by block, and a
        sender's watch takes it for dead meanwhile."""
        elsewhere = self.node is not None or Path(self.path).is_block_device()
        return elsewhere or self.format == ImageFormat.VHD.value


@attrs.frozen
class Kept:
    """What a restarted daemon has to know. `dying`: whatever runs there does not yet show the image as it should.
    `lost`: see Datapath."""

    of: DatapathOf
    users: dict[str, bool]
    closed: bool
    dying: bool = False
    lost: bool = False


def save_state(folder: Path, kept: Kept) -> None:
    """For `read_state`. OSError."""
    of = attrs.evolve(kept.of, secrets=dict.fromkeys(kept.of.secrets, ""))
    write_with_room(folder / _STATE, json.dumps(attrs.asdict(attrs.evolve(kept, of=of))))


def can_be_revived(of: DatapathOf, users: dict[str, bool], closed: bool) -> bool:
    """Whether another process can take the place of one that died, with a domain connected. Not where the dead one had
    something in memory that it had told the domain was written: the tables of a format, whose image was open. Nor while
    the image is being exchanged for another, because only the dead one knew which of the two is in use. Nor an
    ImageNode's, whose secrets only the dead one had."""
    kept = of.format == ImageFormat.RAW.value or closed
    return DOMAIN in users and MOVE not in users and kept and of.node is None


def read_state(folder: Path) -> Kept | None:
    """What `save_state` has kept."""
    try:
        kept = json.loads((folder / _STATE).read_text())
        closed, dying, lost = (bool(kept.get(name)) for name in ("closed", "dying", "lost"))
        return Kept(DatapathOf(**kept["of"]), dict(kept["users"]), closed, dying, lost)
    except (OSError, ValueError, KeyError, TypeError):
        return None
