"""What members say to each other: POST /member over TLS, JSON both ways.

A request carries the pool's secret, which is in the database: whoever can read that is a member. The server is known by
the fingerprint of its certificate, which is in its host's record.
"""

from __future__ import annotations

import json
from typing import Any

import attrs

from xapi_migrate.errors import MigrateError, RemoteError

PATH = b"member"


@attrs.frozen
class Address:
    """Where a member listens for the others."""

    host: str
    port: int
    fingerprint: str

    @property
    def url(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}/member".encode()


def answer(value: Any) -> bytes:
    return json.dumps({"value": value}, separators=(",", ":")).encode()


def refusal(error: MigrateError) -> bytes:
    return json.dumps({"error": error.failure(), "message": str(error)}, separators=(",", ":")).encode()


def read_answer(body: bytes) -> Any:
    """The value. RemoteError with what the member refused it for; ValueError if it is no answer."""
    told = json.loads(body)
    if not isinstance(told, dict):
        raise ValueError("not a JSON object")
    error = told.get("error")
    if error:
        raise RemoteError([str(part) for part in error], str(told.get("message", error[0])))
    return told.get("value")
