"""What can go wrong beside an upstream: entries of the catalogue (errors.py)."""

from __future__ import annotations

from ..errors import MigrateError, catalogue


@catalogue
class UpstreamSilent(MigrateError):
    """The toolstack at {upstream}, beside which this server works, has not answered: {reason}. {advice}"""

    code = "CANNOT_CONTACT_HOST"
    parameters = ("upstream", "reason")
    status = 502
    upstream: str
    reason: str
    advice: str = ""
