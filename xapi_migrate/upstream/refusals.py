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

    @classmethod
    def after(cls, upstream: str, reason: str, tried: bool) -> UpstreamSilent:
        """`tried`: it may have got the request."""
        return cls(upstream, reason, _PERHAPS_DONE if tried else _NOT_DONE)


@catalogue
class NotPermitted(MigrateError):
    """The user {user} may not do this: the toolstack's roles do not give the permission {permission}."""

    code = "RBAC_PERMISSION_DENIED"
    status = 403
    user: str
    permission: str

    def failure(self) -> list[str]:
        return [self.code, self.permission, str(self)]
