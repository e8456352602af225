"""xapi-migrate user-set and user-remove: who may log in at a daemon on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from ..whole_file import write_whole
from ..xenapi.passwords import user_line
from .connection import asked, password_from
from .failures import Refused

_FILE = click.option(
    "--users", "path", type=click.Path(dir_okay=False, path_type=Path), required=True,
    help="The daemon's file of users: `users` in its state folder, or what its --users says.",
)  # fmt: skip


@click.command("user-set")
@click.argument("name")
@_FILE
@click.option(
    "--password-file", type=click.Path(dir_okay=False), help="File whose first line is the password [a prompt]."
)
def user_set(name: str, path: Path, password_file: str | None) -> None:
    """Let NAME log in with a new password; a running daemon knows at once."""
    if password_file:
        password = password_from(Path(password_file))
    else:
        password = asked(f"New password of {name}", "--password-file", twice=True)
    try:
        line = user_line(name, password)
    except ValueError as error:
        raise Refused(f"{name!r} cannot be a user: {error}.") from None
    _write(path, [*_others(path, name), line])
    click.echo(f"{name} may log in.")


@click.command("user-remove")
@click.argument("name")
@_FILE
def user_remove(name: str, path: Path) -> None:
    """Take NAME out; sessions that are open stay open."""
    others = _others(path, name)
    if len(others) == len(_lines(path)):
        raise Refused(f"There is no user {name!r} in {path}.")
    _write(path, others)
    click.echo(f"{name} may no longer log in.")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Refused(f"The file of users {path} cannot be read: {error.strerror}.") from None


def _others(path: Path, name: str) -> list[str]:
    return [line for line in _lines(path) if line.split(":", 1)[0].strip() != name]


def _write(path: Path, lines: list[str]) -> None:
    """All or nothing, readable by its owner alone."""
    if not path.parent.is_dir():
        raise Refused(f"There is no folder {path.parent}: make it first, readable by its owner alone.")
    try:
        write_whole(path, "".join(line if line.endswith("\n") else f"{line}\n" for line in lines))
    except OSError as error:
        raise Refused(f"The file of users {path} cannot be written: {error.strerror}.") from None
