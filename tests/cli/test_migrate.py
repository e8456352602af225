"""vm-migrate: the client's part of the sequence, and what a person sees of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.standin import NULL, StandIn, sr, vm
from xapi_migrate.cli.failures import sentence

VM = "aaaaaaaa-0000-4000-8000-000000000000"
SR = "bbbbbbbb-0000-4000-8000-000000000000"
OTHER_SR = "cccccccc-0000-4000-8000-000000000000"
VDI = "dddddddd-0000-4000-8000-000000000000"


@pytest.fixture
def servers(sender: StandIn, receiver: StandIn) -> list[str]:
    """The sender has the VM, the receiver too once it has moved; the arguments that name both."""
    disk = {"type": "Disk", "VDI": "OpaqueRef:vdi", "userdevice": "0"}
    drive = {"type": "CD", "VDI": NULL, "userdevice": "3"}
    sender.records["VM"] = {"OpaqueRef:vm": vm("web", VM, VBDs=["OpaqueRef:vbd", "OpaqueRef:cd"])}
    sender.records["VBD"] = {"OpaqueRef:vbd": disk, "OpaqueRef:cd": drive}
    sender.records["VDI"] = {"OpaqueRef:vdi": {"uuid": VDI, "name_label": "root disk"}}
    receiver.records["VM"] = {"OpaqueRef:moved": vm("web", VM)}
    receiver.records["SR"] = {"OpaqueRef:sr": sr("big", SR), "OpaqueRef:other": sr("fast", OTHER_SR)}
    receiver.records["pool"]["OpaqueRef:pool"]["default_SR"] = "OpaqueRef:sr"
    sender.states = [
        {"status": "pending", "progress": 0.0, "other_config": {"step": "1.5 T -> R: HTTP HEAD URI"}},
        {"status": "pending", "progress": 0.5, "other_config": {"step": "3.6 T: Task.get_state(new_ref)"}},
        {"status": "success", "progress": 1.0, "other_config": {"step": "5.4 T: VDI.detach", "downtime_ms": "47"}},
    ]
    return ["--url", sender.url, "--to-url", receiver.url]


def test_the_sequence_and_the_summary(run: Run, servers: list[str], calls: list[str], receiver: StandIn,
                                      sender: StandIn) -> None:  # fmt: skip
    done = run("vm-migrate", "web", *servers)
    assert done.returncode == 0, done.stderr
    assert calls == [
        "R session.login_with_password", "T session.login_with_password", "R VM.receive", "T Async.VM.migrate",
        "T task.destroy", "T session.logout", "R session.logout",
    ]  # fmt: skip
    assert receiver.received == ["OpaqueRef:sr", {}]
    assert sender.received == ["OpaqueRef:vm", [f"{receiver.url}/migrate/capability"], {}, {}]
    assert done.stdout.startswith("web is Running on R now: moved in ")
    assert done.stdout.endswith(" s, stopped for 47 ms.\n")
    assert done.stderr.splitlines() == [
        "  0% 1.5 T -> R: HTTP HEAD URI", " 50% 3.6 T: Task.get_state(new_ref)", "100% 5.4 T: VDI.detach",
    ]  # fmt: skip


def test_sr_map_and_options(run: Run, servers: list[str], receiver: StandIn, sender: StandIn) -> None:
    done = run("vm-migrate", VM, *servers, "--sr", SR, "--map", f"{VDI}=fast", "--option", "live=true", "--json")
    assert done.returncode == 0, done.stderr
    assert receiver.received == ["OpaqueRef:sr", {"live": "true"}]
    assert sender.received[2:] == [{"OpaqueRef:vdi": "OpaqueRef:other"}, {"live": "true"}]
    said = json.loads(done.stdout)
    assert (said["uuid"], said["host"], said["power_state"], said["downtime_ms"]) == (VM, "R", "Running", 47.0)
    assert done.stderr == ""


def test_a_failure_is_a_sentence_with_names(run: Run, servers: list[str], sender: StandIn) -> None:
    sender.states = [{
        "status": "failure", "error_info": ["VDI_NOT_IN_MAP", "OpaqueRef:vdi"],
        "other_config": {"step": "2.1 T -> R: HTTP PUT URI/metadata"},
    }]  # fmt: skip
    done = run("vm-migrate", "web", *servers)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"xapi-migrate: web did not move: The VDI root disk ({VDI}) has no SR to go to: name one for it in the VDI "
        "to SR map, or an SR for all in VM.receive. (last step: 2.1 T -> R: HTTP PUT URI/metadata)"
    )


def test_refused_at_once(run: Run, servers: list[str], sender: StandIn) -> None:
    sender.errors["Async.VM.migrate"] = ["VM_BAD_POWER_STATE", "OpaqueRef:vm", "running", "paused"]
    done = run("vm-migrate", "web", *servers)
    assert done.returncode == 1
    assert done.stderr == (
        f"xapi-migrate: web did not move: The VM web ({VM}) is paused, and that call needs it to be running.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "There is no VM named 'nothing' there"),
        (["web", "--sr", "nothing"], "There is no SR named 'nothing' there"),
        (["web", "--map", "nothing=fast"], "The VM has no VDI named 'nothing'; it has root disk ("),
    ],
)
def test_names_that_lead_nowhere(
    run: Run, servers: list[str], calls: list[str], arguments: list[str], said: str
) -> None:
    done = run("vm-migrate", *arguments, *servers)
    assert done.returncode == 1
    assert said in done.stderr
    assert "R VM.receive" not in calls


def test_two_of_one_name(run: Run, servers: list[str], sender: StandIn) -> None:
    sender.records["VM"]["OpaqueRef:twin"] = vm("web", OTHER_SR)
    done = run("vm-migrate", "web", *servers)
    assert done.returncode == 1
    assert f"{VM}, {OTHER_SR}" in done.stderr


def test_no_default_sr(run: Run, servers: list[str], receiver: StandIn) -> None:
    receiver.records["pool"]["OpaqueRef:pool"]["default_SR"] = NULL
    done = run("vm-migrate", "web", *servers)
    assert done.returncode == 1
    assert "name one with --sr" in done.stderr
    assert run("vm-migrate", "web", *servers, "--map", f"{VDI}=fast").returncode == 0
    assert receiver.received == [NULL, {}]


@pytest.mark.parametrize("text", ["vdi", "=sr", "vdi="])
def test_a_map_that_is_none(run: Run, servers: list[str], text: str) -> None:
    assert run("vm-migrate", "web", *servers, "--map", text).returncode == 2


def interrupted(servers: list[str], environment: dict[str, str], calls: list[str], count: int) -> Any:
    """Begin a migration that does not end, send SIGINT `count` times, each when what the one before leads to has been
    done; the process, ended."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "xapi_migrate.cli", "vm-migrate", "web", *servers], env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            # a suite that runs in the background of a shell has it ignored, and a child inherits that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

        def err() -> str:
            return os.pread(said.fileno(), 1 << 20, 0).decode()

        ready = (lambda: "T Async.VM.migrate" in calls, lambda: "cannot be cancelled now" in err())
        try:
            for number in range(count):
                deadline = time.monotonic() + 30
                while not ready[number]() and time.monotonic() < deadline:
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
        return process.returncode, out, err()


def test_an_interrupt_cancels(
    servers: list[str], sender: StandIn, environment: dict[str, str], calls: list[str]
) -> None:
    sender.states = [{"status": "pending", "progress": 0.25, "other_config": {"step": "3.6 copying"}}]
    status, out, err = interrupted(servers, environment, calls, 1)
    assert status == 3, err
    assert out == ""
    assert "Cancelling, and waiting for the clean-up." in err
    assert err.splitlines()[-1] == "xapi-migrate: The migration of web was cancelled: it stays where it was."


def test_a_second_interrupt_leaves_the_task(
    servers: list[str], sender: StandIn, environment: dict[str, str], calls: list[str]
) -> None:
    sender.states = [{"status": "pending", "progress": 0.9, "other_config": {"step": "5.1 done"}}]
    sender.errors["task.cancel"] = ["OPERATION_NOT_ALLOWED", "it is in doubt"]
    status, _, err = interrupted(servers, environment, calls, 2)
    assert status == 130, err
    assert "It cannot be cancelled now: it is in doubt" in err
    assert "No longer watching; task 7a5c0000-0000-4000-8000-000000000001 goes on." in err


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ([], "The server said that it failed, and not why."),
        (["INTERNAL_ERROR", "out of luck"], "out of luck"),
        # its sentence needs the SR, which its parameters do not carry
        (["SR_FULL", "10", "5"], "SR_FULL: 10, 5"),
        (["VM_IS_PROTECTED", "x"], "VM_IS_PROTECTED: x"),
        (["HANDLE_INVALID", "VM", "OpaqueRef:1"], "There is no VM with the reference OpaqueRef:1."),
        (["LICENCE_RESTRICTION"], "LICENCE_RESTRICTION"),
    ],
)
def test_sentences(description: list[str], said: str) -> None:
    assert sentence(description) == said


def test_a_vm_that_is_there_already(run: Run, servers: list[str], receiver: StandIn, calls: list[str]) -> None:
    receiver.this_host = "OpaqueRef:host"
    done = run("vm-migrate", "web", *servers)
    said = "xapi-migrate: web stays where it is: it runs on the host at --to-url already.\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert "R VM.receive" not in calls
