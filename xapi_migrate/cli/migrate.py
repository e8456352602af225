"""xapi-migrate vm-migrate."""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import click

from .connection import Server, peer_options, server_option
from .interruption import noticing
from .migration import Migration, Moved, Wish
from .output import json_option, say
from .progress import Display, display


@click.command("vm-migrate")
@click.argument("vm")
@server_option
@peer_options
@click.option("--sr", default="", help="SR that the disks go to, name or uuid [the receiving host's default SR].")
@click.option("--map", "maps", multiple=True, metavar="VDI=SR", help="Another SR for one disk. Repeatable.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE",
              help="An option of VM.receive and VM.migrate. Repeatable.")  # fmt: skip
@json_option
def vm_migrate(
    vm: str, server: Server, to_server: Server, sr: str, maps: tuple[str, ...], options: tuple[str, ...], as_json: bool
) -> None:
    """Move VM (its name or uuid) from the host at --url to the host at --to-url, with its disks.

    A running VM keeps running. Ctrl-C cancels: the VM then stays where it was, unless it has been handed over already.
    """
    wish = Wish(vm, sr, _pairs(maps, "--map"), _pairs(options, "--option"))
    moved = migrate(server, to_server, wish, quiet=as_json)
    if as_json:
        click.echo(json.dumps(attrs.asdict(moved), indent=2))
    else:
        say(summary(moved))


def migrate(server: Server, to_server: Server, wish: Wish, quiet: bool = False) -> Moved:
    """The whole migration with its display; steps 1.1 to 1.4 in the order of the sequence."""
    with to_server.session() as receiver, server.session() as sender:
        migration = Migration(sender, receiver)
        migration.prepare(wish)
        with noticing() as interrupted:
            migration.start()
            with display(migration.name_label, quiet) as shown:
                return _followed(migration, shown, interrupted)


def _followed(migration: Migration, shown: Display, interrupted: Callable[[], bool]) -> Moved:
    """The first Ctrl-C cancels, the second leaves the task to itself."""
    try:
        moved = migration.follow(shown.watch, interrupted)
        if moved is None:
            shown.say(migration.cancel())
            moved = migration.follow(shown.watch)
        assert moved is not None  # nobody could interrupt the second time but by KeyboardInterrupt
        return moved
    except KeyboardInterrupt:
        shown.say(f"No longer watching; task {migration.task_uuid} goes on.")
        raise


def summary(moved: Moved) -> str:
    """One sentence."""
    downtime = f", stopped for {moved.downtime_ms:.0f} ms" if moved.downtime_ms is not None else ""
    where = f" on {moved.host}" if moved.host else ""
    return f"{moved.name_label} is {moved.power_state}{where} now: moved in {moved.seconds:.1f} s{downtime}."


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise click.UsageError(f"{option} takes NAME=VALUE, not {text!r}.")
        if key in pairs:
            raise click.UsageError(f"{option} names {key!r} twice: {pairs[key]!r} and {value!r}.")
        pairs[key] = value
    return pairs
