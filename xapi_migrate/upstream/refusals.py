"""What can go wrong beside an upstream: entries of the catalogue (errors.py)."""

from __future__ import annotations

from ..errors import MigrateError, catalogue

_NOT_DONE = "Nothing has been done."
_PERHAPS_DONE = "Whether it has done what it was asked is not known: look before you ask again."


@catalogue
class UpstreamSilent(MigrateError):
    """The toolstack at {upstream}, beside which this server works, has not answered: {reason}. {advice}"""

    code = "CANNOT_CONTACT_HOST"
    parameters = ("upstream", "reason")
    status = 502
    upstream: str
    reason: str
    advice: str = ""

    @property
    def nothing_done(self) -> bool:
        """It is known that the upstream has not got the request."""
        return self.advice == _NOT_DONE

    @classmethod
    def after(cls, upstream: str, reason: str, tried: bool) -> UpstreamSilent:
        """`tried`: it may have got the request."""
        return cls(upstream, reason, _PERHAPS_DONE if tried else _NOT_DONE)


@catalogue
class UpstreamRefuses(MigrateError):
    """The toolstack of the receiving host has refused {what}: {words}"""

    # Carried on with its own code and parameters.
    status = 409
    what: str
    description: list[str]
    words: str

    def failure(self) -> list[str]:
        return list(self.description)


@catalogue
class SessionOver(MigrateError):
    """The session with which VM.receive was called at the receiving host has ended, and nothing can be done there
    without it: call VM.receive again."""

    code = "OPERATION_NOT_ALLOWED"
    status = 409

    def failure(self) -> list[str]:
        return [self.code, str(self)]


@catalogue
class NotPermitted(MigrateError):
    """The user {user} may not do this: the toolstack's roles do not give the permission {permission}."""

    code = "RBAC_PERMISSION_DENIED"
    status = 403
    user: str
    permission: str

    def failure(self) -> list[str]:
        return [self.code, self.permission, str(self)]
