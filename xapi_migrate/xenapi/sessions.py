"""Sessions: log-in through twisted.cred, the references that every other call needs, their end."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import LoginFailed, Unauthorized
from twisted.cred.portal import IRealm, Portal
from twisted.internet import task
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import Interface, implementer

from xapi_migrate.errors import HandleInvalid, SessionAuthenticationFailed, SessionInvalid
from xapi_migrate.store.interfaces import NULL, IRecords
from xapi_migrate.xenapi.brake import LoginBrake
from xapi_migrate.xenapi.hashing import TooManyLogins

IDLE = timedelta(hours=24)
"""A session that is not used for so long ends."""
TOUCH = timedelta(minutes=10)
"""last_active is not written more often than this."""
MOST_PER_USER = 500
SWEEP_SECONDS = 600.0


TRUSTED = "the host itself"
"""The origin of calls that come by the host's own socket; no address looks like it."""
_LOCAL_USER = "root"


def kept(ref: str) -> str:
    """The reference of a session's record: whoever can read the records cannot use the session."""
    told = hashlib.sha256(ref.encode("utf-8", "surrogatepass")).hexdigest()
    return f"OpaqueRef:{told[:8]}-{told[8:12]}-{told[12:16]}-{told[16:20]}-{told[20:32]}"


class IXenAPIUser(Interface):
    """The avatar: somebody who may call."""


@implementer(IXenAPIUser)
class XenAPIUser:
    def __init__(self, name: str) -> None:
        self.name = name


@implementer(IRealm)
class XenAPIRealm:
    """Everybody whom a checker knows may do everything."""

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        name = avatarId.decode() if isinstance(avatarId, bytes) else str(avatarId)
        return IXenAPIUser, XenAPIUser(name), lambda: None


class Sessions:
    """All sessions of this host."""

    log = Logger()

    def __init__(
        self,
        records: IRecords,
        checkers: list[ICredentialsChecker],
        clock: IReactorTime,
        host: Callable[[], str] = lambda: NULL,
    ) -> None:
        self._records = records
        self._portal = Portal(XenAPIRealm(), checkers)
        self._clock = clock
        self._host = host
        self._brake = LoginBrake(clock)
        self._sweeping = task.LoopingCall(self.sweep)
        self._sweeping.clock = clock

    def start(self) -> None:
        """Begin to end idle sessions. Who has one open is no stranger."""
        for ref in self._records.refs("session"):
            if origin := self._records.get("session", ref).get("_origin"):
                self._brake.welcome(origin)
        self._sweeping.start(SWEEP_SECONDS, now=False)

    def stop(self) -> None:
        if self._sweeping.running:
            self._sweeping.stop()

    async def login(self, username: str, password: str, origin: str, originator: str = "") -> str:
        """The new session's ref. SessionAuthenticationFailed, after a while if there were bad log-ins from `origin`'s
        network, or many from everywhere and none that was good from this; at once if too many are being looked at.
        Who comes by the host's own socket has shown who he is by that, whatever name and password he gives."""
        if origin == TRUSTED:
            return self.open(_LOCAL_USER, origin, originator)
        turn = self._brake.wait(origin)
        if turn is None:
            raise SessionAuthenticationFailed(username, "Too many bad log-ins: wait a moment.")
        good: bool | None = False
        try:
            await turn
            avatar: Any
            _, avatar, _ = await self._portal.login(
                UsernamePassword(username.encode(), password.encode()), None, IXenAPIUser
            )
            good = True
        except TooManyLogins:
            good = None
            raise SessionAuthenticationFailed(username, "Too many log-ins at once: wait a moment.") from None
        except (LoginFailed, Unauthorized):
            self.log.warn("A log-in from {origin} failed", origin=origin)
            raise SessionAuthenticationFailed(username) from None
        finally:
            self._brake.ended(origin, good)
        return self.open(avatar.name, origin, originator)

    def open(self, user: str, origin: str, originator: str = "") -> str:
        """A session without asking for a password (the caller has other proof)."""
        mine = self._records.find("session", auth_user_name=user)
        for ref in mine[: max(0, len(mine) - MOST_PER_USER + 1)]:
            self._records.destroy("session", ref)
        raw = secrets.token_hex(16)
        ref = f"OpaqueRef:{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"
        now = self._now()
        self._records.create(
            "session", ref=kept(ref), this_host=self._host(), last_active=now, validation_time=now,
            is_local_superuser=True, auth_user_name=user, originator=originator[:200], _origin=origin,
        )  # fmt: skip
        return ref

    async def look_for(self, ref: Any) -> str:
        """As `check`; another member of the pool may have opened it just now."""
        try:
            return self.check(ref)
        except SessionInvalid:
            if not await self._records.refresh():
                raise
        return self.check(ref)

    def check(self, ref: Any) -> str:
        """The user of a session, which is thereby used. SessionInvalid."""
        if not isinstance(ref, str):
            raise SessionInvalid("" if ref is None else str(ref)[:100])
        try:
            record = self._records.get("session", kept(ref))
        except HandleInvalid:
            raise SessionInvalid(ref) from None
        idle = self._now() - record["last_active"]
        if idle > IDLE:
            self._records.destroy("session", kept(ref))
            raise SessionInvalid(ref)
        if idle > TOUCH:
            self._records.update("session", kept(ref), last_active=self._now())
        return str(record["auth_user_name"])

    def logout(self, ref: str) -> None:
        self._records.destroy("session", kept(ref))

    def sweep(self) -> None:
        """End the sessions that nobody used for long."""
        for ref in self._records.refs("session"):
            if self._now() - self._records.get("session", ref)["last_active"] > IDLE:
                self._records.destroy("session", ref)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.seconds(), UTC)
