"""What a call costs that an overlay passes through: the same calls directly and through it, in turn.

python -m bench.relay [--calls N]

Two daemons on loopback, one beside the other, each a process of its own; one kept connection to each. Milliseconds.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xapi_migrate import tls
from xapi_migrate.lab.host import LabHost
from xapi_migrate.xenapi import wire

PASSWORD = "of the bench"


def call(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    connection.request("POST", "/RPC2", body, {"Content-Type": "text/xml"})
    return connection.getresponse().read()


def measure(connection: http.client.HTTPConnection, body: bytes) -> float:
    began = time.perf_counter()
    call(connection, body)
    return (time.perf_counter() - began) * 1000


def compare(url: Callable[[LabHost], int], upstream: LabHost, beside: LabHost, calls: int) -> None:
    direct, through = (http.client.HTTPConnection("127.0.0.1", url(host)) for host in (upstream, beside))
    with upstream.server.session() as session:
        ref = session._session
        for label, method, params in (
            ("a small answer", "session.get_uuid", (ref, ref)),
            ("all hosts", "host.get_all_records", (ref,)),
            ("put together: all tasks", "task.get_all_records", (ref,)),
        ):
            body = wire.call(method, params)
            assert call(direct, body)[:200] == call(through, body)[:200]
            times: list[tuple[float, float]] = []
            for number in range(calls):
                pair = ((direct, through), (through, direct))[number % 2]
                taken = [measure(one, body) for one in pair]
                times.append((taken[0], taken[1]) if number % 2 == 0 else (taken[1], taken[0]))
            show(label, times)
    for connection in (direct, through):
        connection.close()


def show(label: str, times: list[tuple[float, float]]) -> None:
    sides: list[Any] = list(zip(*times))
    medians = [statistics.median(side) for side in sides]
    tails = [statistics.quantiles(side, n=20)[18] for side in sides]
    print(
        f"{label:28} directly {medians[0]:.2f} (p95 {tails[0]:.2f})  through {medians[1]:.2f} (p95 {tails[1]:.2f})  "
        f"added {medians[1] - medians[0]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=1500)
    calls = parser.parse_args().calls
    print(f"load {os.getloadavg()[0]:.1f}, {calls} calls each, ms")
    with tempfile.TemporaryDirectory(prefix="xr", dir="/tmp") as name:
        folder = Path(name)
        for scheme in ("http", "https"):
            upstream = LabHost("upstream", folder / f"{scheme}-u", PASSWORD)
            beside = LabHost("beside", folder / f"{scheme}-b", PASSWORD)
            upstream.configure({})
            pinned = f"{upstream.https_url}#sha256={tls.HostIdentity.load(upstream.state_dir).fingerprint()}"
            beside.configure({"upstream": upstream.url if scheme == "http" else pinned})
            try:
                upstream.start()
                beside.start()
                upstream.wait_ready()
                beside.wait_ready()
                print(f"upstream by {scheme}")
                compare(lambda host: host.port, upstream, beside, calls)
            finally:
                beside.end()
                upstream.end()


if __name__ == "__main__":
    main()
