"""Who may log in, as --auth says it: KIND or KIND:ARGUMENT.

`file[:PATH]`: a file of user names and hashes. `unix[:NAME,NAME]`: accounts of this machine by its shadow passwords,
root alone unless others are named, for whoever logs in may do everything. Any other kind is asked of the plug-ins of
twisted.cred (ICheckerFactory), which is the place for PAM, LDAP and the like.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from twisted.cred import strcred
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import LoginFailed, UnauthorizedLogin
from twisted.internet import defer
from twisted.plugins.cred_unix import UNIXChecker
from zope.interface import implementer

from xapi_migrate.xenapi.hashing import Hashing
from xapi_migrate.xenapi.passwords import PasswordFile

UNFIT = ("anonymous", "memory")
"""Twisted's own kinds that let everybody in, or put passwords on the command line."""


class UnknownChecker(ValueError):
    """A text that names no checker; the message is a sentence."""


@implementer(ICredentialsChecker)
class NamedAccounts:
    """Accounts of this machine, those of `names` alone. A name that is not one of them costs a look-up too."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, names: Collection[str], accounts: Any = None, hashing: Hashing | None = None) -> None:
        self._hashing = hashing or Hashing()
        self._names = frozenset(names)
        self._accounts = accounts or UNIXChecker()

    def requestAvatarId(self, credentials: Any) -> defer.Deferred[bytes | tuple[()]]:
        return defer.Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> bytes | tuple[()]:
        name = _text(credentials.username)
        try:
            known = await self._hashing.run(self._known, credentials)
        except (OSError, ValueError):  # a name with a NUL, a shadow file that may not be read
            raise UnauthorizedLogin from None
        if not known or name not in self._names:
            raise UnauthorizedLogin
        return name.encode()

    def _known(self, credentials: Any) -> bool:
        """In a thread: it reads files, and the hash is meant to be slow."""
        outcome: list[bool] = []
        checked: defer.Deferred[Any] = self._accounts.requestAvatarId(credentials)
        checked.addCallbacks(lambda _: outcome.append(True), lambda failure: failure.trap(LoginFailed) and None)
        return outcome == [True]


@implementer(ICredentialsChecker)
class AnyOf:
    """The first of `checkers` that knows who it is."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, checkers: Sequence[Any]) -> None:
        self._checkers = checkers

    def requestAvatarId(self, credentials: Any) -> defer.Deferred[Any]:
        return defer.Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Any) -> Any:
        for checker in self._checkers:
            try:
                return await defer.maybeDeferred(checker.requestAvatarId, credentials)
            except LoginFailed:
                continue
        raise UnauthorizedLogin


def make_checker(texts: Sequence[str], folder: Path) -> AnyOf:
    """The checker of these texts together; relative paths are below `folder`. UnknownChecker."""
    hashing = Hashing()
    return AnyOf([_one(text, folder, hashing) for text in texts])


def _one(text: str, folder: Path, hashing: Hashing) -> Any:
    kind, _, argument = text.partition(":")
    if kind == "file":
        return PasswordFile(folder / (argument or "users"), hashing)
    if kind == "unix":
        return NamedAccounts([name.strip() for name in (argument or "root").split(",")], hashing=hashing)
    check_text(text)
    try:
        return strcred.makeChecker(text)
    except Exception as error:
        raise UnknownChecker(f"--auth {kind}: its plug-in does not take {argument!r}: {error}") from None


def check_text(text: str) -> None:
    """UnknownChecker unless the text names a kind of checker that there is and that is fit."""
    kind = text.partition(":")[0]
    factories = {factory.authType: factory for factory in strcred.findCheckerFactories()}
    if kind in ("file", "unix"):
        return
    factory = factories.get(kind)
    if factory is None or kind in UNFIT or IUsernamePassword not in factory.credentialInterfaces:
        others = sorted(set(factories) - {"file", "unix", *UNFIT, "sshkey"})
        raise UnknownChecker(
            f"--auth takes file:PATH or unix:NAMES{''.join(f' or {one}' for one in others)}, not {kind!r}."
        )


def _text(data: bytes | str) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data
