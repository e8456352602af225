"""What becomes of a VM whose domain has crashed: its actions_after_crash, and somebody is told."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.logger import Logger

from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.machines import Machines
from xapi_migrate.toolstack.messages import Messages
from xapi_migrate.xenapi.tasks import Tasks

RESTARTS = ("restart", "coredump_and_restart", "rename_restart")
AGAIN = 120.0
"""Seconds. A VM that crashes so soon after it was started again for a crash stays Halted."""
CRASHED, NOT_STARTED = ("VM_CRASHED", 3), ("VM_NOT_RESTARTED", 2)


class Crashes:
    """Of this host's VMs. A VM that is busy, with a migration for example, comes here when that has ended."""

    log = Logger()

    def __init__(self, records: Records, machines: Machines, messages: Messages, tasks: Tasks, clock: Any) -> None:
        self._records = records
        self._machines = machines
        self._messages = messages
        self._tasks = tasks
        self._clock = clock
        self._started: dict[str, float] = {}

    async def happened(self, vm: str, why: str) -> None:
        """The VM is Halted, its domain and its datapaths are gone: one that is started begins with its disks as they
        are."""
        restart = self._records.get("VM", vm)["actions_after_crash"] in RESTARTS
        soon = self._clock.seconds() - self._started.pop(vm, float("-inf")) < AGAIN
        if not restart:
            then = "It is Halted."
        elif soon:
            then = f"It is Halted: it had crashed and been started again less than {AGAIN:g} s before."
        else:
            then = "It is started again."
        self._tell(vm, CRASHED, f"{why}. {then}")
        if restart and not soon:
            await self._start(vm)

    async def _start(self, vm: str) -> None:
        name = self._records.get("VM", vm)["name_label"]
        task = self._tasks.begin(f"VM.start of {name} after its crash")
        try:
            await self._machines.start_halted(vm, task.ref)
            self._started[vm] = self._clock.seconds()
        except BaseException as failure:
            task.fail(failure)
            if isinstance(failure, defer.CancelledError | GeneratorExit):
                raise
            self._tell(vm, NOT_STARTED, f"It crashed and could not be started again: {failure}")
            return
        task.succeed()

    def _tell(self, vm: str, what: tuple[str, int], text: str) -> None:
        record = self._records.get("VM", vm)
        self.log.error("VM {name} ({uuid}): {text}", name=record["name_label"], uuid=record["uuid"], text=text)
        self._messages.tell(*what, "VM", record["uuid"], text)
