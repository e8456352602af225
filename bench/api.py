"""What XenAPI costs: all records of many VMs, clients that wait for events, and calls per second beside Twisted's own
XML-RPC server.

    python -m bench.api [--vms N] [--waiting N] [--seconds S] [--json FILE]

The servers are processes of their own, asked over loopback on kept connections. CPU is theirs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs

from xapi_migrate.xenapi import wire

ROUNDS = 7
TURNS = 60
"""Short ones: the machine's other work should meet both alike."""


@attrs.define
class Server:
    """One that was started here."""

    pid: int
    port: int
    session: str
    vm: str

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return time.clock_gettime((~self.pid << 3) | 2)  # clock_getcpuclockid(3)


@contextmanager
def server(kind: str, count: int) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.api_server", kind, str(count)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Server(process.pid, **json.loads(process.stdout.readline()))
        finally:
            process.kill()


class Client:
    """One kept connection, that does no more than it must."""

    def __init__(self, to: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", to.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, method: str, *params: Any) -> None:
        self._socket.sendall(request(method, *params))

    def receive(self) -> bytes:
        """The body of the next answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._socket.recv(1 << 18)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        pieces, have = [body], len(body)
        while have < length:
            pieces.append(self._socket.recv(1 << 18))
            have += len(pieces[-1])
        return b"".join(pieces)

    def ask(self, method: str, *params: Any) -> bytes:
        self.send(method, *params)
        return self.receive()

    def close(self) -> None:
        self._socket.close()


def request(method: str, *params: Any) -> bytes:
    given = "".join(f"<param>{wire.value(param)}</param>" for param in params)
    body = f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{given}</params></methodCall>"
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def all_records(count: int) -> dict[str, Any]:
    """Seconds, medians."""
    with server("ours", count) as ours:
        client = Client(ours)
        found: dict[str, Any] = {}
        for name, method, params in (
            ("VM.get_all_records", "VM.get_all_records", (ours.session,)),
            ("first event.from", "event.from", (ours.session, ["*"], "", 30.0)),
        ):
            seconds, cpu = [], ours.cpu()
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                answer = client.ask(method, *params)
                seconds.append(time.perf_counter() - begun)
            assert b"Success" in answer[:200] and answer.count(b"<name>VCPUs_max</name>") == count
            found[name] = {
                "seconds": statistics.median(seconds), "most": max(seconds), "cpu": (ours.cpu() - cpu) / ROUNDS,
                "bytes": len(answer),
            }  # fmt: skip
        client.close()
        return found


def waiting(count: int, vms: int, seconds: float) -> dict[str, Any]:
    """CPU of a server while so many clients wait for events, and while nobody does."""
    with server("ours", vms) as ours:
        first = Client(ours)
        answer = first.ask("event.from", ours.session, ["*"], "", 0.0)
        token = answer.rpartition(b"<name>token</name><value>")[2].partition(b"<")[0].decode()
        begun = ours.cpu()
        time.sleep(seconds)
        idle = ours.cpu() - begun
        clients = [Client(ours) for _ in range(count)]
        for client in clients:
            client.send("event.from", ours.session, ["*"], token, seconds * 10)
        time.sleep(1)
        begun = ours.cpu()
        time.sleep(seconds)
        spent = ours.cpu() - begun
        begun_at = time.perf_counter()
        first.ask("VM.set_name_label", ours.session, ours.vm, "changed")
        woken = [client.receive() for client in clients]
        took = time.perf_counter() - begun_at
        assert all(b"<value>changed</value>" in answer for answer in woken)
        for client in (first, *clients):
            client.close()
        return {"idle cpu": idle / seconds, "waiting cpu": spent / seconds, "all woken within": took}


def calls_per_second(method: str, marker: bytes, seconds: float) -> dict[str, Any]:
    """The same call to ours and to Twisted's own, in turn; and how many calls a second of CPU does."""
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(server(kind, 10)) for kind in ("ours", "stock")}
        clients = {kind: Client(one) for kind, one in servers.items()}
        done = dict.fromkeys(servers, 0)
        wall = dict.fromkeys(servers, 0.0)
        cpu = dict.fromkeys(servers, 0.0)
        for _ in range(TURNS):
            for kind, one in servers.items():
                asked, client = request(method, one.session, one.vm), clients[kind]
                spent, begun = one.cpu(), time.perf_counter()
                while time.perf_counter() - begun < seconds / TURNS / 2:
                    client._socket.sendall(asked)
                    assert marker in client.receive()
                    done[kind] += 1
                wall[kind] += time.perf_counter() - begun
                cpu[kind] += one.cpu() - spent
        for client in clients.values():
            client.close()
        found: dict[str, Any] = {
            kind: {"calls/s": round(done[kind] / wall[kind]), "calls/CPU s": round(done[kind] / cpu[kind])}
            for kind in servers
        }
        found["ours to stock"] = found["ours"]["calls/s"] / found["stock"]["calls/s"]
        found["by CPU"] = found["ours"]["calls/CPU s"] / found["stock"]["calls/CPU s"]
        return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.api", description=__doc__.split("\n\n")[0])
    parser.add_argument("--vms", type=int, default=1000, help="VMs of the server (default 1000)")
    parser.add_argument("--waiting", type=int, default=100, help="clients that wait for events (default 100)")
    parser.add_argument("--seconds", type=float, default=14, help="length of each measurement (default 14)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    options = parser.parse_args()
    figures = {
        "load": os.getloadavg()[0],
        f"{options.vms} VMs": all_records(options.vms),
        f"{options.waiting} waiting": waiting(options.waiting, options.vms, options.seconds / 2),
        "VM.get_record": calls_per_second("VM.get_record", b"<name>VCPUs_max</name>", options.seconds),
        "VM.get_uuid": calls_per_second("VM.get_uuid", b"Success", options.seconds),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
