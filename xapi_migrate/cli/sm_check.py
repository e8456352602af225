"""xapi-migrate sm-check: does an installed storage backend keep the contract?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click

from .failures import ExitCode, Refused
from .output import json_option

FOLDER = "{folder}"


@click.command("sm-check")
@click.argument("name")
@click.option(
    "--device-config",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="device_config of a scratch SR, all of whose VDIs are destroyed; {folder} stands for a folder that is made "
    "and removed. Without any, the backend says by itself.",
)
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds for each check.")
@json_option
def sm_check(name: str, pairs: tuple[str, ...], timeout: float, as_json: bool) -> int:
    """Run the contract of storage backends against the one of type NAME: by itself, as sender and as receiver.

    Needs the programs that a host needs (qemu-storage-daemon, tgtd), and no daemon. Exit status 0 when every check
    passed.
    """
    driver = _driver(name)
    config = _config(driver, pairs)
    from twisted.internet import defer, task

    from ..testing.sm_check import HELD, check_driver

    verdicts: list[Any] = []

    async def main() -> None:
        async for verdict in check_driver(driver, config, timeout):
            verdicts.append(verdict)
            if not as_json:
                click.echo(_line(verdict, HELD))

    try:
        task.react(lambda reactor: defer.Deferred.fromCoroutine(main()))
    except SystemExit as ended:  # react's way to end
        if ended.code:
            raise
    failed = [verdict for verdict in verdicts if verdict.failure]
    if as_json:
        click.echo(json.dumps([attrs.asdict(verdict) for verdict in verdicts], indent=2))
    else:
        verdict = f"{len(failed)} of {len(verdicts)} checks failed" if failed else f"all {len(verdicts)} checks passed"
        click.echo(f"{name} {driver.version}: {verdict}.")
    return ExitCode.FAILED if failed else ExitCode.DONE


def _driver(name: str) -> Any:
    from ..sm.discovery import discover

    drivers = discover()
    if name in drivers.usable:
        return drivers.usable[name]
    reasons = [broken.reason for broken in drivers.broken if broken.where in (name, f"sm_{name}_plugin", f"sm_{name}")]
    raise Refused(
        f"The storage backend {name} cannot be used: {'; '.join(reasons)}"
        if reasons
        else f"No storage backend named {name} is installed here; sm-list shows which are."
    )


def _config(driver: Any, pairs: tuple[str, ...]) -> Any:
    given = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(given) < len(pairs):
        raise click.UsageError("--device-config takes KEY=VALUE, each key once.")
    if given:
        return lambda folder: {key: value.replace(FOLDER, str(folder)) for key, value in given.items()}
    own = getattr(driver, "scratch", None)
    if not callable(own):
        raise click.UsageError(f"The backend {driver.name} does not say what a scratch SR is: give --device-config.")

    def scratch(folder: Path) -> dict[str, str]:
        made: dict[str, str] = own(folder)
        return made

    return scratch


def _line(verdict: Any, most: float) -> str:
    name = verdict.check.removeprefix("check_").replace("_", " ")
    line = f"{'FAILED' if verdict.failure else 'ok':6}  {verdict.part}: {name} ({verdict.seconds:.1f} s)"
    if verdict.failure:
        line += f"\n        it must hold: {verdict.says}\n        {verdict.failure}"
    if verdict.held > most:
        line += f"\n        note: the reactor was held up for {verdict.held:.1f} s; slow calls belong into threads"
    return line
