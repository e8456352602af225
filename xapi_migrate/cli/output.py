"""How commands show what they found: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def json_option(function: F) -> F:
    """--json; the command receives `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def clean(text: str, also: str = "") -> str:
    """The text without what a terminal would obey: whoever names a VM, or sends one, does not draw on the screen of who
    lists it. `also`: characters that may stay."""
    return "".join(c if c.isprintable() or c in also else "\N{REPLACEMENT CHARACTER}" for c in text)


def say(text: str, err: bool = False) -> None:
    """Sentences for people, perhaps with words of others in them."""
    click.echo(clean(text, also="\n"), err=err)


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool, empty: str) -> None:
    """Rows as a list of JSON objects, or the named columns as a table; `empty` is said when there are none."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2))
        return
    if not rows:
        click.echo(empty)
        return
    cells = [[_text(row[column]) for column in columns] for row in rows]
    heads = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(line[at]) for line in [heads, *cells]) for at in range(len(columns))]
    for line in [heads, *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def size(value: int) -> str:
    """Bytes for people."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return clean(",".join(str(item) for item in value))
    return clean(str(value))
