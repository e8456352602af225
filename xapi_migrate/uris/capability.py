"""The secret in a migration URI."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

import attrs

SIZE = 32
"""Random bytes in a capability."""

PATTERN = r"[A-Za-z0-9_-]{43}"
"""What a capability looks like: 32 bytes as base64url without padding."""

_WHOLE = re.compile(PATTERN, re.ASCII)


@attrs.frozen
class Capability:
    """Who knows `text` may act on one migration. Only its digest is ever stored."""

    text: str = attrs.field(repr=False)

    @text.validator
    def _check(self, attribute: object, value: str) -> None:
        if not _WHOLE.fullmatch(value):
            raise ValueError("a capability is 43 base64url characters")

    @classmethod
    def new(cls) -> Capability:
        """A fresh one, from the operating system's random numbers."""
        return cls(secrets.token_urlsafe(SIZE))

    @property
    def digest(self) -> bytes:
        """What the receiver keeps of it: its SHA-256."""
        return digest(self.text)


def digest(text: str) -> bytes:
    """The digest of a capability that somebody presents; any text will do."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def opens(text: str, kept: bytes) -> bool:
    """Whether `text` is the capability whose digest was kept, in constant time."""
    return hmac.compare_digest(digest(text), kept)


def find(text: str, kept: Iterable[bytes]) -> bytes | None:
    """The digest among `kept` that `text` opens. All of them are compared, so the time tells nothing."""
    presented = digest(text)
    found: bytes | None = None
    for one in kept:
        if hmac.compare_digest(presented, one):
            found = one
    return found
