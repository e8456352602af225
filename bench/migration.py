"""A running guest moves N times between two hosts, in turn with the same move by plain QEMU: how long it takes, and how
long the guest stands still.

    python -m bench.migration [--moves N] [--disk MIB] [--filled MIB] [--memory MIB] [--dirty MIB_PER_S] [--idle]
                              [--rate MBIT] [--tree DIR] [--json FILE]

Both guests are alike (one emulated processor, two disks on the same file system), both moves cross the loopback
device and both are told the same downtime limit; the guest that is not moving runs meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import by_hand, ours
from bench.by_hand import ByHand
from bench.dark_window import MOMENTS
from bench.ours import Ours
from xapi_migrate.lab.provisioning import MIB, Guest
from xapi_migrate.testing.guests.ticker import Ticker, ram

OTHER = "the other tree"
_SLOWED = "BENCH_SLOWED"
Moves = dict[str, list[dict[str, Any]]]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.migration", description=__doc__.split("\n\n")[0])
    parser.add_argument("--moves", type=int, default=6, help="moves of each kind (default 6)")
    parser.add_argument("--disk", type=int, default=1024, help="MiB of the first disk (default 1024)")
    parser.add_argument("--filled", type=int, default=256, help="MiB of it that hold data (default 256)")
    parser.add_argument("--memory", type=int, default=256, help="MiB of memory (default 256)")
    parser.add_argument("--dirty", type=float, default=0, help="MiB/s of memory that the guest writes (default 0)")
    parser.add_argument("--idle", action="store_true", help="a guest that writes to no disk (else 100 times a second)")
    parser.add_argument("--rate", type=int, default=0, help="the loopback device carries so many Mbit/s (default: all)")
    parser.add_argument("--folder", type=Path, help="where the images are (default: a temporary folder)")
    parser.add_argument("--tree", type=Path, help="another tree of this project, measured in the same run")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args()


def slow_down(rate: int) -> None:
    """Go on in a network namespace of this process's own whose loopback device carries `rate` Mbit/s. Needs root."""
    if os.environ.get(_SLOWED) == str(rate):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        shape = ["rate", f"{rate}mbit", "burst", "256kb", "latency", "50ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", "lo", "root", "tbf", *shape], check=True)
        return
    os.environ[_SLOWED] = str(rate)
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", "bench.migration", *sys.argv[1:]])


def guest_of(options: argparse.Namespace) -> Guest:
    span = 0 if options.idle else 2000
    ticker = ram(options.memory * MIB, options.dirty, 64 * MIB) if options.dirty else Ticker()
    ticker = Ticker(
        ticker.ticks, span, ticker.begin, ticker.fill_end, ticker.fill_pages, ticker.end, ticker.pages, ticker.disks
    )
    return Guest("bench", memory=options.memory, disk=options.disk, filled=options.filled, ticker=ticker)


def measure(folder: Path, guest: Guest, count: int, tree: Path | None) -> Moves:
    """`count` moves of each kind, in turn."""
    with ExitStack() as stack:
        movers: dict[str, Ours | ByHand] = {
            ours.NAME: stack.enter_context(Ours(folder / "lab", guest)),
            by_hand.NAME: stack.enter_context(ByHand(folder / "qemu", guest)),
        }
        if tree is not None:
            movers[OTHER] = stack.enter_context(Ours(folder / "other", guest, tree))
        moves: Moves = {name: [] for name in movers}
        for number in range(count):
            for name, mover in movers.items():
                mover.settled()
                time.sleep(1)
                move = mover.move()
                moves[name].append(move)
                print(f"{number + 1:2} {name:14} {move['total_s']:6.2f} s  gap {move['gap_ms']:6.1f} ms", flush=True)
    return moves


def summary(moves: Moves) -> dict[str, Any]:
    """Medians of each kind, their ratio, and the dark window."""
    medians = {
        name: {key: statistics.median(move[key] for move in done) for key in ("total_s", "gap_ms")}
        for name, done in moves.items()
    }
    mine, theirs = medians[ours.NAME], medians[by_hand.NAME]
    return {
        "medians": medians,
        "ratios": {key: mine[key] / theirs[key] for key in mine},
        "stop_to_resume_ms": statistics.median(move["stop_to_resume_ms"] for move in moves[by_hand.NAME]),
        "window_ms": {name: _window(moves[name]) for name in (ours.NAME, OTHER) if name in moves},
    }


def _window(done: list[dict[str, Any]]) -> dict[str, float]:
    windows = [move["window_ms"] for move in done]
    return {
        moment: statistics.median(window[moment] for window in windows)
        for moment in MOMENTS
        if all(moment in window for window in windows)
    }


def show(result: dict[str, Any], moves: Moves) -> None:
    print()
    print(f"{'':14} {'total s, median':>16} {'min-max':>14} {'gap ms, median':>16} {'min-max':>14}")
    for name, done in moves.items():
        totals, gaps = [m["total_s"] for m in done], [m["gap_ms"] for m in done]
        median = result["medians"][name]
        print(
            f"{name:14} {median['total_s']:16.2f} {min(totals):6.2f}-{max(totals):<7.2f}"
            f" {median['gap_ms']:16.1f} {min(gaps):6.0f}-{max(gaps):<7.0f}"
        )
    print(f"{'ratio':14} {result['ratios']['total_s']:16.2f} {'':14} {result['ratios']['gap_ms']:16.2f}")
    print(f"\n{by_hand.NAME}, STOP to RESUME: {result['stop_to_resume_ms']:.1f} ms (median)")
    for name, window in result["window_ms"].items():
        print(f"{name}, milliseconds after 4.3 `suspended` (medians):")
        for moment, at in window.items():
            print(f"  {at:7.1f}  {moment}")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat it."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], check=True, capture_output=True, text=True).stdout
    names = ("moves", "disk", "filled", "memory", "dirty", "idle", "rate")
    return {
        **{name: getattr(options, name) for name in names},
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "qemu": version.splitlines()[0],
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg(),
    }


def main() -> None:
    options = parsed()
    if options.rate:
        slow_down(options.rate)
    told = settings(options)
    print(json.dumps(told))
    folder = Path(tempfile.mkdtemp(prefix="xm-bench-", dir=options.folder))
    try:
        moves = measure(folder, guest_of(options), options.moves, options.tree)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = summary(moves)
    show(result, moves)
    if options.json is not None:
        options.json.write_text(json.dumps({"settings": told, **result, "moves": moves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
