"""How a migration under way is shown: a bar on a terminal, otherwise a line whenever there is news."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from . import migration
from .output import clean, say


class Display(Protocol):
    """Shows progress between enter and exit; `say` is for sentences in between."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...  # fmt: skip
    def watch(self, progress: migration.Progress) -> None: ...
    def say(self, sentence: str) -> None: ...


class Bar:
    """For a terminal."""

    def __init__(self, title: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[step]}", markup=False), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task(clean(title), total=1.0, step="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._progress.stop()

    def watch(self, progress: migration.Progress) -> None:
        self._progress.update(self._task, completed=progress.fraction, step=_news(progress))

    def say(self, sentence: str) -> None:
        self._progress.console.print(clean(sentence), highlight=False, markup=False)


class Lines:
    """For a file or a pipe: a line on stderr at each new step and each tenth."""

    def __init__(self) -> None:
        self._shown: tuple[int, str] = (-1, "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        pass

    def watch(self, progress: migration.Progress) -> None:
        news = (int(progress.fraction * 10), _news(progress))
        if news != self._shown:
            self._shown = news
            click.echo(f"{progress.fraction:4.0%} {news[1]}".rstrip(), err=True)

    def say(self, sentence: str) -> None:
        say(sentence, err=True)


class Silent(Lines):
    """For programs that asked for JSON: nothing but sentences."""

    def watch(self, progress: migration.Progress) -> None:
        pass


def _news(progress: migration.Progress) -> str:
    return clean(progress.in_doubt or progress.step)


def display(title: str, quiet: bool = False) -> Display:
    """The one that fits stderr."""
    if quiet:
        return Silent()
    return Bar(title) if sys.stderr.isatty() else Lines()
