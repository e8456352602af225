"""host.evacuate: every VM of this host goes to a member that can take it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from twisted.internet import defer

from xapi_migrate.errors import MigrateError
from xapi_migrate.refusals import NoHostsAvailable
from xapi_migrate.store.records import Records
from xapi_migrate.together import together
from xapi_migrate.toolstack.placement import Placement
from xapi_migrate.xenapi.tasks import Task, Tasks

Move = Callable[[str, str, str, Task], Awaitable[None]]
"""(vm, host, user, task)"""


@attrs.define
class Plan:
    """`places`: VM -> host; `in_the_way`: VM -> why it cannot go."""

    places: dict[str, str] = attrs.Factory(dict)
    in_the_way: dict[str, MigrateError] = attrs.Factory(dict)


class Evacuation:
    """`check` says what is in a VM's own way, `move` moves it within the pool."""

    def __init__(
        self, records: Records, host: str, placement: Placement, check: Callable[[str], None], move: Move, tasks: Tasks
    ) -> None:
        self._records = records
        self._host = host
        self._placement = placement
        self._check = check
        self._move = move
        self._tasks = tasks

    def plan(self) -> Plan:
        """The largest VMs first, each to the host with the most memory left."""
        plan = Plan()
        others = [host for host in self._records.refs("host") if host != self._host]
        free = {host: self._placement.free_memory(host) for host in others}
        vms = [(vm, self._records.get("VM", vm)) for vm in self._records.find("VM", resident_on=self._host)]
        for vm, record in sorted(vms, key=lambda one: -int(one[1]["memory_static_max"])):
            if record["is_control_domain"]:
                continue
            try:
                self._check(vm)
                possible = [host for host in self._placement.possible(vm, others)
                            if free[host] >= record["memory_static_max"]]  # fmt: skip
                if not possible:
                    raise self._why(vm, others)
            except MigrateError as error:
                plan.in_the_way[vm] = error
                continue
            chosen = max(possible, key=lambda host: free[host])
            free[chosen] -= record["memory_static_max"]
            plan.places[vm] = chosen
        return plan

    def _why(self, vm: str, others: list[str]) -> MigrateError:
        """Of one other host what it says, of several only that none will do."""
        if len(others) == 1:
            try:
                self._placement.check(vm, others[0])
            except MigrateError as error:
                return error
        return NoHostsAvailable()

    async def evacuate(self, at_once: int, user: str, task: Task) -> None:
        """Nothing begins if one of them cannot go. All go on when one fails; the first failure is then told. The
        engine's queue says how many move at once; `at_once` > 0 can only make that fewer."""
        plan = self.plan()
        for error in plan.in_the_way.values():
            raise error
        limit = defer.DeferredSemaphore(at_once if at_once > 0 else max(1, len(plan.places)))
        parts = {vm: self._tasks.begin("Async.VM.pool_migrate", f"evacuation, {task.ref}") for vm in plan.places}
        cancelled: list[bool] = []

        def cancel() -> None:
            cancelled.append(True)
            for part in parts.values():
                if "cancel" in self._records.get("task", part.ref)["allowed_operations"]:
                    part.cancel()

        done: list[str] = []

        async def one(vm: str, host: str) -> None:
            part = parts[vm]
            await limit.acquire()
            try:
                if cancelled:
                    raise defer.CancelledError
                await self._move(vm, host, user, part)
            except BaseException as error:
                part.fail(error)
                raise
            finally:
                limit.release()
            part.succeed()
            done.append(vm)
            task.set_progress(len(done) / len(parts))

        task.on_cancel(cancel)
        await together(*(one(vm, host) for vm, host in plan.places.items()))
