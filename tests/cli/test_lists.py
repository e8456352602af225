"""vm-list, sr-list, sm-list, task-list."""

from __future__ import annotations

import contextlib
import io
import json

from tests.cli.conftest import Run
from tests.cli.standin import StandIn, sr, task, vm
from xapi_migrate.cli.migration import Progress
from xapi_migrate.cli.progress import Bar

A = "aaaaaaaa-0000-4000-8000-000000000000"
B = "bbbbbbbb-0000-4000-8000-000000000000"


def test_vm_list_is_a_table(run: Run, sender: StandIn) -> None:
    sender.records["VM"] = {
        "OpaqueRef:b": vm("web", B),
        "OpaqueRef:a": vm("db", A, power_state="Halted", resident_on=""),
    }
    done = run("vm-list", "--url", sender.url)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "LABEL", "UUID", "POWER", "STATE", "HOST", "MEMORY"],
        ["db", A, "Halted", "64.0", "MiB"],
        ["web", B, "Running", "T", "64.0", "MiB"],
    ]


def test_vm_list_hides_what_is_being_received(run: Run, sender: StandIn) -> None:
    sender.records["VM"] = {"OpaqueRef:a": vm("db", A, other_config={"HideFromXenCenter": "true"})}
    assert run("vm-list", "--url", sender.url).stdout == "No VMs.\n"
    (row,) = json.loads(run("vm-list", "--url", sender.url, "--all", "--json").stdout)
    assert (row["name_label"], row["uuid"], row["ref"]) == ("db", A, "OpaqueRef:a")


def test_a_name_does_not_draw_on_the_screen(run: Run, sender: StandIn) -> None:
    """Terminals obey ESC and its one-character forms; a line of its own could pass for another VM."""
    sender.records["VM"] = {"OpaqueRef:a": vm("\x9b2J\nroot  \u202edb", A)}
    shown = run("vm-list", "--url", sender.url).stdout
    assert len(shown.splitlines()) == 2
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_progress_takes_no_orders_from_names() -> None:
    """Rich would read them as markup, and fail at a tag that ends nothing."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), Bar("moving [/x] \x9b2J") as bar:
        bar.watch(Progress(0.5, "3.6 [/x]", ""))
        bar.say("the VM [/x] stays \x9b")
    assert "\x9b" not in shown.getvalue() and "the VM [/x] stays" in shown.getvalue()


def test_sr_list_says_where_an_sr_is_attached(run: Run, sender: StandIn) -> None:
    sender.records["SR"] = {"OpaqueRef:sr": sr("local-raw", A, PBDs=["OpaqueRef:pbd"])}
    sender.records["PBD"] = {"OpaqueRef:pbd": {"host": "OpaqueRef:host", "currently_attached": True}}
    sender.records["pool"]["OpaqueRef:pool"]["default_SR"] = "OpaqueRef:sr"
    (row,) = json.loads(run("sr-list", "--url", sender.url, "--json").stdout)
    assert (row["attached_to"], row["default"], row["free"]) == (["T"], True, "8.0 GiB")
    assert "local-raw" in run("sr-list", "--url", sender.url).stdout


def test_sm_list_needs_no_server(run: Run) -> None:
    done = run("sm-list", "--json")
    assert done.returncode == 0, done.stderr
    drivers = {row["type"]: row for row in json.loads(done.stdout)}
    assert drivers["file"]["problem"] == ""
    assert "raw" in drivers["file"]["formats"]


def test_task_list_shows_what_is_pending(run: Run, sender: StandIn) -> None:
    sender.records["task"] = {
        "OpaqueRef:1": task(progress=0.425, other_config={"step": "3.6 T: Task.get_state(new_ref)"}),
        "OpaqueRef:2": task(uuid=A, status="success"),
    }
    (row,) = json.loads(run("task-list", "--url", sender.url, "--json").stdout)
    assert (row["percent"], row["step"], row["can_cancel"]) == (42, "3.6 T: Task.get_state(new_ref)", True)
    assert len(json.loads(run("task-list", "--url", sender.url, "--json", "--all").stdout)) == 2


def test_task_cancel_waits_for_the_end(run: Run, sender: StandIn, calls: list[str]) -> None:
    sender.records["task"] = {"OpaqueRef:1": task(uuid=A)}
    done = run("task-cancel", "--url", sender.url, A)
    assert (done.returncode, done.stdout) == (0, f"Task {A} has been cancelled.\n")
    assert "T task.cancel" in calls


def test_task_cancel_too_late(run: Run, sender: StandIn) -> None:
    sender.records["task"] = {"OpaqueRef:1": task(uuid=A)}
    sender.errors["task.cancel"] = ["OPERATION_NOT_ALLOWED", "the receiver has been told to go on"]
    done = run("task-cancel", "--url", sender.url, A)
    assert done.returncode == 1
    assert done.stderr == f"xapi-migrate: Task {A} cannot be cancelled now: the receiver has been told to go on\n"
