"""Who may log in: a file of user names and scrypt hashes, as a twisted.cred checker.

One line per user, NAME:scrypt$N$R$P$SALT$HASH (salt and hash in base64); lines that begin with # and empty ones are
skipped. The file is read at each log-in, so a change holds at once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from zope.interface import implementer

from xapi_migrate.xenapi.hashing import Hashing

COST = (1 << 14, 8, 1)
_LONGEST = 1024


def hash_password(password: str, cost: tuple[int, int, int] = COST) -> str:
    """What stands after the colon."""
    salt = os.urandom(16)
    n, r, p = cost
    return f"scrypt${n}${r}${p}${_text(salt)}${_text(_derive(password, salt, cost))}"


def user_line(name: str, password: str, cost: tuple[int, int, int] = COST) -> str:
    """A line of the file, with its line end."""
    if not name or set(name) & set(":\r\n") or name.startswith("#"):
        raise ValueError("a user name has no colon and no line end and does not begin with #")
    return f"{name}:{hash_password(password, cost)}\n"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _derive(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 << 20, dklen=32)


def verify(password: str, hashed: str) -> bool:
    """Whether the password goes with a hash of `hash_password`; a line that cannot be read fits none."""
    try:
        kind, n, r, p, salt, expected = hashed.split("$")
        derived = _derive(password, base64.b64decode(salt), (int(n), int(r), int(p)))
        return kind == "scrypt" and hmac.compare_digest(derived, base64.b64decode(expected))
    except ValueError:
        return False


_NOBODY = hash_password(_text(os.urandom(16)))


@implementer(ICredentialsChecker)
class PasswordFile:
    """The checker. Unknown users cost as much time as known ones. Those of one server share their `hashing`."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, path: Path, hashing: Hashing | None = None) -> None:
        self._path = path
        self._hashing = hashing or Hashing()

    def requestAvatarId(self, credentials: Any) -> defer.Deferred[bytes | tuple[()]]:
        name, password = _decoded(credentials.username), _decoded(credentials.password)
        return defer.Deferred.fromCoroutine(self._hashing.run(self._check, name, password))

    def _check(self, name: str, password: str) -> bytes:
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            lines = []
        users = dict(line.strip().split(":", 1) for line in lines if ":" in line and not line.startswith("#"))
        known = verify(password[:_LONGEST], users.get(name, _NOBODY))
        if not known or name not in users:
            raise UnauthorizedLogin
        return name.encode()


def _decoded(text: bytes | str) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
