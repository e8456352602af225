"""What drivers keep of a domain in its folder, whatever the hypervisor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs

from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec
from xapi_migrate.whole_file import write_whole

SPEC = "spec.json"
"""Which hardware it has."""


def spec_to_json(spec: DomainSpec) -> str:
    return json.dumps(attrs.asdict(spec), indent=1)


def spec_from_json(text: str) -> DomainSpec:
    """ValueError or TypeError when it is not one."""
    fields = json.loads(text)
    fields["disks"] = tuple(DomainDisk(**disk) for disk in fields["disks"])
    fields["nics"] = tuple(DomainNic(**nic) for nic in fields["nics"])
    return DomainSpec(**fields)


def write_spec(folder: Path, spec: DomainSpec) -> None:
    """It is there whole or not at all. OSError."""
    write_whole(folder / SPEC, spec_to_json(spec), durable=False)


def folders(root: Path) -> list[Path]:
    """The folders of all domains below `root`."""
    if not root.is_dir():
        return []
    return sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
