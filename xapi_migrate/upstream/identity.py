"""Whose session it is: the upstream's answer, believed for a few seconds."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import attrs

from ..errors import SessionInvalid
from ..xenapi.sessions import Sessions
from .client import UpstreamClient
from .refusals import NotPermitted, UpstreamSilent

BELIEVED = 5.0
"""Seconds for which an answer of the upstream holds."""
MOST = 5000
"""Sessions that are remembered."""


@attrs.frozen
class Caller:
    """Who calls, as the upstream says. `permissions` are names of calls in lower case; a superuser needs none."""

    session: str = attrs.field(repr=False)
    user: str
    superuser: bool
    permissions: frozenset[str]

    def must_be_permitted(self, permission: str) -> None:
        """NotPermitted."""
        if not self.superuser and permission not in self.permissions:
            raise NotPermitted(self.user, permission)


class VouchedSessions(Sessions):
    """Sessions of the upstream, known here while somebody has vouched for them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._vouched: OrderedDict[str, Caller] = OrderedDict()

    def vouch(self, caller: Caller) -> None:
        self._vouched[caller.session] = caller
        self._vouched.move_to_end(caller.session)
        while len(self._vouched) > MOST:
            self._vouched.popitem(last=False)

    def disown(self, ref: str) -> None:
        """It has ended."""
        self._vouched.pop(ref, None)

    def caller(self, ref: str) -> Caller:
        """SessionInvalid."""
        if ref not in self._vouched:
            raise SessionInvalid(ref)
        return self._vouched[ref]

    def check(self, ref: Any) -> str:
        return self.caller(ref).user if isinstance(ref, str) else super().check(ref)


class Identity:
    """Asks the upstream who somebody is."""

    def __init__(self, client: UpstreamClient, sessions: VouchedSessions, clock: Any) -> None:
        self._client = client
        self._sessions = sessions
        self._clock = clock
        self._until: dict[str, float] = {}

    async def check(self, ref: Any) -> Caller:
        """RemoteError with the upstream's words (SESSION_INVALID, HOST_IS_SLAVE); UpstreamSilent."""
        if not isinstance(ref, str) or not ref:
            raise SessionInvalid(str(ref or "")[:100])
        now = self._clock.seconds()
        if self._until.get(ref, 0.0) > now:
            return self._sessions.caller(ref)
        self._until.pop(ref, None)
        try:
            record = await self._client.call("session.get_record", ref, ref)
        except Exception as error:
            if not isinstance(error, UpstreamSilent):
                self.forget(ref)
            raise
        caller = self._read(ref, record)
        self._sessions.vouch(caller)
        if len(self._until) > MOST:
            self._until = {one: until for one, until in self._until.items() if until > now}
        self._until[ref] = self._clock.seconds() + BELIEVED
        return caller

    def knows(self, ref: Any) -> bool:
        """Whether the upstream has vouched for it."""
        try:
            return isinstance(ref, str) and bool(self._sessions.caller(ref))
        except SessionInvalid:
            return False

    def _read(self, ref: str, record: Any) -> Caller:
        """What is missing or of another kind gives no right."""
        if not isinstance(record, dict):
            raise SessionInvalid(ref)
        listed = record.get("rbac_permissions")
        permissions = listed if isinstance(listed, list) else []
        return Caller(
            ref, str(record.get("auth_user_name") or record.get("auth_user_sid") or "somebody")[:200],
            record.get("is_local_superuser") is True,
            frozenset(one for one in permissions if isinstance(one, str)),
        )  # fmt: skip

    def forget(self, ref: Any) -> None:
        """The session has ended, or may have: who asks next is asked about anew."""
        if isinstance(ref, str):
            self._until.pop(ref, None)
            self._sessions.disown(ref)
