"""session.*: log-in, log-out, and what clients ask of their session."""

from __future__ import annotations

from xapi_migrate.errors import OperationNotAllowed
from xapi_migrate.xenapi.calls import CallContext
from xapi_migrate.xenapi.sessions import Sessions


class SessionCalls:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def session_login_with_password(
        self, call: CallContext, uname: str, pwd: str, version: str, originator: str
    ) -> str:
        return await self._sessions.login(uname, pwd, call.origin, originator)

    def session_logout(self, call: CallContext) -> None:
        self._sessions.logout(call.session)

    def session_local_logout(self, call: CallContext) -> None:
        self._sessions.logout(call.session)

    def session_get_all_subject_identifiers(self, call: CallContext) -> list[str]:
        """Of users of a directory; there are none."""
        return []

    def session_logout_subject_identifier(self, call: CallContext, subject_identifier: str) -> None:
        """Nobody of a directory is logged in."""

    def session_change_password(self, call: CallContext, old_pwd: str, new_pwd: str) -> None:
        raise OperationNotAllowed("Passwords are changed in the file of users on the host.")
