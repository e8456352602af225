"""xapi-migrate task-list and task-cancel."""

from __future__ import annotations

import time
from typing import Any

import click
import XenAPI

from .connection import Server, server_option
from .failures import ExitCode, Refused, sentence
from .output import json_option, say, show


@click.command("task-list")
@server_option
@click.option("--all", "everything", is_flag=True, help="Also tasks that have ended.")
@json_option
def task_list(server: Server, everything: bool, as_json: bool) -> None:
    """List the tasks of a server."""
    with server.session() as session:
        records = session.xenapi.task.get_all_records()
    rows = [_row(ref, record) for ref, record in records.items() if everything or record["status"] == "pending"]
    rows.sort(key=lambda row: row["created"])
    show(rows, ("name_label", "uuid", "status", "percent", "step", "can_cancel"), as_json, "No tasks.")


@click.command("task-cancel")
@server_option
@click.argument("uuid")
def task_cancel(server: Server, uuid: str) -> int:
    """Cancel the task with this UUID and wait until it has ended."""
    with server.session() as session:
        try:
            ref = session.xenapi.task.get_by_uuid(uuid)
            session.xenapi.task.cancel(ref)
        except XenAPI.Failure as failure:
            raise Refused(_why(failure, uuid)) from None
        while True:
            record = session.xenapi.task.get_record(ref)
            if record["status"] not in ("pending", "cancelling"):
                break
            time.sleep(0.5)
    if record["status"] == "cancelled":
        say(f"Task {uuid} has been cancelled.")
        return ExitCode.DONE
    if record["status"] == "success":
        raise Refused(f"It was too late: task {uuid} has succeeded.")
    raise Refused(f"Task {uuid} has failed: {sentence(record['error_info'])}")


def _why(failure: XenAPI.Failure, uuid: str) -> str:
    if failure.details[0] == "OPERATION_NOT_ALLOWED":
        return f"Task {uuid} cannot be cancelled now: {sentence(failure.details)}"
    return sentence(failure.details)


def _row(ref: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "name_label": record["name_label"],
        "uuid": record["uuid"],
        "ref": ref,
        "status": record["status"],
        "percent": round(100 * float(record["progress"])),
        "step": record["other_config"].get("step", ""),
        "can_cancel": "cancel" in record["allowed_operations"],
        "created": str(record["created"]),
        "error_info": record["error_info"],
    }
