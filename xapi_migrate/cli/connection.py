"""The options that name a XenAPI server, and the session that they lead to.

A password is never taken from the command line, where every process of the machine can read it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import ssl
import sys
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import click
import XenAPI

from .failures import Refused, explained, sentence

F = TypeVar("F", bound=Callable[..., Any])

TIME_OUT = 120.0
"""Seconds without a byte after which a call is given up."""


@attrs.frozen
class Server:
    """A XenAPI server and who logs in there. `ca_file` "" trusts the system's authorities."""

    url: str
    user: str
    password: str = attrs.field(repr=False)
    insecure: bool = False
    ca_file: str = ""

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """Log in; the XenAPI session, logged out at the end. Refused names the server."""
        session = XenAPI.Session(self.url, transport=self._transport())
        try:
            session.xenapi.login_with_password(self.user, self.password, "2.23", "xapi-migrate")
        except XenAPI.Failure as failure:
            raise Refused(f"No log-in at {self.url}: {sentence(failure.details)}") from None
        except Exception as error:
            raise explained(error, self.url) or error from None
        try:
            yield session
        except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
            raise explained(error, self.url) or error from None
        finally:
            with contextlib.suppress(Exception):  # the server forgets it by itself in the end
                session.xenapi.session.logout()

    def _transport(self) -> xmlrpc.client.Transport:
        if not self.url.startswith("https:"):
            return _Plain()
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return _Tls(context=context)


class _Plain(xmlrpc.client.Transport):
    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = TIME_OUT
        return connection


class _Tls(xmlrpc.client.SafeTransport):
    def make_connection(self, host: Any) -> http.client.HTTPSConnection:
        connection = super().make_connection(host)
        connection.timeout = TIME_OUT
        return connection


def server_option(function: F) -> F:
    """Options --url, --user, --password-file, --insecure, --ca-file; the command receives `server`."""
    return _options(function, "server", "", "XAPI_MIGRATE", "server")


def peer_options(function: F) -> F:
    """The same with --to- in front, for the host that receives; the command receives `to_server`."""
    return _options(function, "to_server", "to-", "XAPI_MIGRATE_TO", "receiving host")


def _options(function: F, name: str, prefix: str, variable: str, what: str) -> F:
    keys = {key: f"{prefix}{key}".replace("-", "_") for key in ("url", "user", "password-file", "insecure", "ca-file")}

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        said = {key: kwargs.pop(argument) for key, argument in keys.items()}
        url = _checked(said["url"], f"--{prefix}url")
        password = _password(said["password-file"], variable, said["user"], url)
        kwargs[name] = Server(url, said["user"], password, said["insecure"], said["ca-file"] or "")
        return function(*args, **kwargs)

    decorators = (
        click.option(f"--{prefix}url", envvar=f"{variable}_URL", required=True, help=f"Address of the {what}."),
        click.option(f"--{prefix}user", envvar=f"{variable}_USER", default="root", show_default=True,
                     help="Who logs in there."),
        click.option(f"--{prefix}password-file", type=click.Path(dir_okay=False),
                     help=f"File whose first line is the password [the variable {variable}_PASSWORD, else a prompt]."),
        click.option(f"--{prefix}ca-file", type=click.Path(exists=True, dir_okay=False),
                     help="Certificates of the authorities that are trusted for https there."),
        click.option(f"--{prefix}insecure", is_flag=True, help="Take any certificate for https there."),
    )  # fmt: skip
    wrapped: Any = command
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    result: F = wrapped
    return result


def _checked(url: str, option: str) -> str:
    if "://" not in url:
        url = f"https://{url}"
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"{option} takes http://HOST[:PORT] or https://HOST[:PORT], not {url!r}.")
    if "@" in url.split("://", 1)[1].split("/", 1)[0]:
        prefix = option.removesuffix("url")
        raise click.UsageError(f"{option} must not hold a password: use {prefix}user and {prefix}password-file.")
    try:
        host = urlsplit(url).hostname
        urlsplit(url).port  # noqa: B018  # ValueError
    except ValueError:
        host = None
    if not host:
        raise click.UsageError(f"{option} takes http://HOST[:PORT] or https://HOST[:PORT], not {url!r}.")
    return url


def _password(file: str | None, variable: str, user: str, url: str) -> str:
    if file:
        return password_from(Path(file))
    if f"{variable}_PASSWORD" in os.environ:
        return os.environ[f"{variable}_PASSWORD"]
    return asked(f"Password of {user} at {url}", f"--password-file or the variable {variable}_PASSWORD")


def asked(what: str, instead: str, twice: bool = False) -> str:
    """A password from the terminal. Refused, naming what there is `instead`, if there is nobody to ask."""
    if not sys.stdin.isatty():
        raise Refused(f"{what}: there is no terminal to ask for it, use {instead}.")
    password: str = click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True)
    return password


def password_from(file: Path) -> str:
    """The first line of a password file."""
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise Refused(f"The password file {file} cannot be read: {error.strerror}.") from None
    if not lines or not lines[0]:
        raise Refused(f"The password file {file} is empty.")
    return lines[0]
