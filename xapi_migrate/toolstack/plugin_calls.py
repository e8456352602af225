"""host.call_plugin: what an administrator may ask of this server and XenAPI has no call for.

The plug-in is `xapi-migrate`. Its functions: `leftovers` and `remove_leftovers` (JSON), `in_doubt`,
`in_doubt_receiving` and `unsettled` (JSON) and `force_settle`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from functools import partial
from typing import Protocol

from xapi_migrate.errors import InvalidValue, OperationNotAllowed, RemoteError
from xapi_migrate.migration.interfaces import Outcome
from xapi_migrate.toolstack.leftovers import Leftover, Leftovers
from xapi_migrate.toolstack.unsettled import Unsettled
from xapi_migrate.xenapi.calls import CallContext

PLUGIN = "xapi-migrate"
_TOLD = ("kind", "name", "why", "remedy")
OUTCOMES = {"moved": Outcome.COMMITTED, "stays": Outcome.ABORTED}
"""What an administrator may say of a VM whose sender is in doubt: it runs at the receiver; it never will."""
GIVEN_UP = "given-up"
"""And of one with which a suspend, a resume or a storage motion is not settled."""


class SettlingEngine(Protocol):
    """What `force_settle` needs of the engine."""

    def settle(self, vm: str, outcome: Outcome) -> Awaitable[None]: ...
    def in_doubt(self) -> list[str]: ...


class Elsewhere(Protocol):
    """What waits at another toolstack: VMs that are sent, or received (`receiving`); see upstream/moves.py and
    upstream/receives.py."""

    @property
    def receiving(self) -> bool: ...
    async def left(self, session: str) -> list[Leftover]: ...
    def in_doubt(self) -> list[str]: ...
    async def settle(self, vm: str, outcome: Outcome, session: str) -> bool: ...


class PluginCalls:
    """The functions of the plug-in. `elsewhere`: of a daemon that stands, or stood, beside an upstream."""

    def __init__(
        self, engine: SettlingEngine, leftovers: Leftovers, unsettled: Unsettled, *elsewhere: Elsewhere
    ) -> None:  # fmt: skip
        self._engine = engine
        self._unsettled = unsettled
        self._leftovers = leftovers
        self._elsewhere = elsewhere

    async def host_call_plugin(self, call: CallContext, host: str, plugin: str, fn: str, args: dict[str, str]) -> str:
        if plugin != PLUGIN:
            raise RemoteError(["XENAPI_MISSING_PLUGIN", plugin], f"There is no plug-in named {plugin} here.")
        if fn == "leftovers":
            found = await self._leftovers.find() + await self._left(call)
            return json.dumps([{key: getattr(one, key) for key in _TOLD} for one in found])
        if fn == "remove_leftovers":
            more = partial(self._left, call)
            removed, failed = await self._leftovers.remove(_names(args.get("names", "")), more)
            return json.dumps({"removed": removed, "failed": failed})
        if fn == "in_doubt":
            return json.dumps(self._engine.in_doubt() + [vm for one in self._elsewhere for vm in one.in_doubt()])
        if fn == "in_doubt_receiving":
            return json.dumps([vm for one in self._elsewhere if one.receiving for vm in one.in_doubt()])
        if fn == "unsettled":
            return json.dumps(self._unsettled.all())
        if fn == "force_settle" and args.get("outcome") == GIVEN_UP:
            if not await self._unsettled.give_up(args.get("vm", "")):
                raise OperationNotAllowed(f"Nothing of VM {args.get('vm', '')} is unsettled on this host.")
            return ""
        if fn == "force_settle":
            if args.get("outcome") not in OUTCOMES:
                raise InvalidValue("outcome", args.get("outcome", ""))
            await self._settle(call, args.get("vm", ""), OUTCOMES[args["outcome"]])
            return ""
        raise RemoteError(["UNKNOWN_XENAPI_PLUGIN_FUNCTION", fn], f"The plug-in {plugin} has no function named {fn}.")

    async def _left(self, call: CallContext) -> list[Leftover]:
        return [leftover for one in self._elsewhere for leftover in await one.left(call.session)]

    async def _settle(self, call: CallContext, vm: str, outcome: Outcome) -> None:
        for one in self._elsewhere:
            if vm in [*self._engine.in_doubt(), *one.in_doubt()] and await one.settle(vm, outcome, call.session):
                return
        await self._engine.settle(vm, outcome)


def _names(text: str) -> list[str]:
    """InvalidValue."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidValue("names", text[:100])
    return names
