#!/usr/bin/python3 -SE
"""Stands in for LVM's commands (and blkdiscard) where the kernel has no device-mapper. Keeps the metadata of one group
in $FAKE_LVM/state.json; an active volume is a link below $FAKE_LVM/dev, as LVM's is below /dev. What a new volume holds
is old data. Passes the same contract suite as the real one (make test-lvm)."""

import argparse
import fcntl
import json
import os
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_LVM"])
PROGRAM = Path(sys.argv[0]).name
EXTENT = 4 << 20


def fail(words: str) -> None:
    print(f"  {words}", file=sys.stderr)
    sys.exit(5)


def size_of(text: str) -> int:
    if not text.endswith("b"):
        fail(f"Size {text} is not in bytes")
    return -(-int(text[:-1]) // EXTENT) * EXTENT


class Fake:
    def __init__(self, state: dict) -> None:
        self.state = state
        self.name = state["name"]
        self.volumes = state["volumes"]

    def free(self) -> int:
        return self.state["size"] - sum(one["size"] for one in self.volumes.values() if not one["pool"])

    def group(self, name: str) -> None:
        if name != self.name:
            fail(f'Volume group "{name}" not found')

    def volume(self, path: str) -> dict:
        group, _, name = path.partition("/")
        self.group(group)
        if name not in self.volumes:
            fail(f'Failed to find logical volume "{path}"')
        return self.volumes[name]

    def device(self, name: str) -> Path:
        return HOME / "dev" / self.name / name

    def data(self, name: str) -> Path:
        return HOME / f"{name}.data"

    def vgs(self, of: argparse.Namespace) -> None:
        self.group(of.what)
        self.report(
            "vg",
            of.options,
            [
                {
                    "vg_name": self.name,
                    "vg_size": self.state["size"],
                    "vg_free": self.free(),
                    "vg_extent_size": EXTENT,
                    "vg_tags": ",".join(self.state["tags"]),
                    "vg_missing_pv_count": self.state.get("missing", 0),
                }
            ],
        )

    def lvs(self, of: argparse.Namespace) -> None:
        self.group(of.what)
        rows = []
        for name, one in self.volumes.items():
            kind = "t" if one["thin_pool"] else "V" if one["pool"] else "-"
            active = self.device(name).is_symlink() or one["thin_pool"]
            rows.append(
                {
                    "lv_name": name,
                    "lv_path": "" if one["thin_pool"] else str(self.device(name)),
                    "lv_size": one["size"],
                    "lv_tags": ",".join(one["tags"]),
                    "lv_active": "active" if active else "",
                    "lv_attr": f"{kind}wi-{'a' if active else '-'}--{'z' if one['zero'] else '-'}--",
                    "pool_lv": one["pool"],
                    "data_percent": "0.00" if one["pool"] and active else "",
                }
            )
        self.report("lv", of.options, rows)

    def report(self, kind: str, options: str, rows: list) -> None:
        wanted = options.split(",")
        print(json.dumps({"report": [{kind: [{field: str(row[field]) for field in wanted} for row in rows]}]}))

    def lvcreate(self, of: argparse.Namespace) -> None:
        self.group(of.what)
        if of.name in self.volumes:
            fail(f'Logical Volume "{of.name}" already exists in volume group "{self.name}"')
        size = size_of(of.size or of.virtualsize)
        if of.type == "linear" and size > self.free():
            fail(f'Volume group "{self.name}" has insufficient free space')
        with self.data(of.name).open("wb") as data:
            if of.type == "linear":
                for _ in range(size // EXTENT):
                    data.write(b"old data" * (EXTENT // 8))
            data.truncate(size)
        self.volumes[of.name] = {
            "size": size,
            "tags": of.addtag,
            "pool": of.thinpool or "",
            "thin_pool": False,
            "zero": False,
        }
        if of.activate != "n":
            self.activate(of.name)

    def lvchange(self, of: argparse.Namespace) -> None:
        one, name = self.volume(of.what), of.what.partition("/")[2]
        one["tags"] = [tag for tag in one["tags"] if tag not in of.deltag] + of.addtag
        if of.activate == "n":
            if name in self.state.get("open", ()):
                fail(f"Logical volume {of.what} in use.")
            self.device(name).unlink(missing_ok=True)
        elif of.activate:
            self.activate(name)

    def activate(self, name: str) -> None:
        self.device(name).parent.mkdir(parents=True, exist_ok=True)
        if not self.device(name).is_symlink():
            self.device(name).symlink_to(self.data(name))

    def lvremove(self, of: argparse.Namespace) -> None:
        self.volume(of.what)
        name = of.what.partition("/")[2]
        of.activate, of.addtag, of.deltag = "n", [], []
        self.lvchange(of)
        self.data(name).unlink()
        del self.volumes[name]

    def vgchange(self, of: argparse.Namespace) -> None:
        self.group(of.what)
        self.state["tags"] = [tag for tag in self.state["tags"] if tag not in of.deltag] + of.addtag


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["vgs", "lvs", "lvcreate", "lvchange", "lvremove", "vgchange"])
    for flag in ("--yes", "--nosuffix"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--reportformat", choices=["json"])
    parser.add_argument("--units", choices=["b"])
    parser.add_argument("--activate", choices=["n", "sy", "ey"])
    parser.add_argument("--type", choices=["linear", "thin"])
    for choice in ("--zero", "--wipesignatures"):
        parser.add_argument(choice, choices=["n"])
    for option in ("--options", "--name", "--size", "--virtualsize", "--thinpool"):
        parser.add_argument(option)
    for option in ("--addtag", "--deltag"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("what")
    return parser.parse_args()


def blkdiscard() -> None:
    assert sys.argv[1:3] == ["--zeroout", "--step"], sys.argv
    with Path(sys.argv[4]).open("r+b") as device:
        size = device.seek(0, os.SEEK_END)
        device.truncate(0)
        device.truncate(size)


def main() -> None:
    with (HOME / "calls").open("a") as calls:
        calls.write(" ".join([PROGRAM, *sys.argv[1:]]) + "\n")
    with (HOME / "state.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = json.load(file)
        if state.get("hangs") in sys.argv:
            time.sleep(3600)
        if PROGRAM == "blkdiscard":
            blkdiscard()
            return
        of = arguments()
        if state.get("fails") == of.command:
            fail("Device /dev/sdz has an I/O error")
        getattr(Fake(state), of.command)(of)
        file.seek(0)
        file.truncate()
        json.dump(state, file)


main()
