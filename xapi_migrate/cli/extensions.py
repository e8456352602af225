"""xapi-migrate install-extensions and uninstall-extensions: an existing xapi on this machine answers our calls."""

from __future__ import annotations

from pathlib import Path

import click

from ..upstream import extensions
from .failures import ExitCode, Refused

_STATE = click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), required=True,
    help="The daemon's state folder: what was installed is written down there.",
)  # fmt: skip
_MANIFEST = "extensions.json"


@click.command("install-extensions")
@_STATE
@click.option(
    "--socket", type=click.Path(path_type=Path), help="The daemon's api_socket [api.sock in the state folder]."
)
@click.option(
    "--extensions-dir", type=click.Path(file_okay=False, path_type=Path), default=extensions.FOLDER, show_default=True,
    help="Where xapi looks for executables named as calls.",
)  # fmt: skip
def install_extensions(state_dir: Path, socket: Path | None, extensions_dir: Path) -> None:
    """Let xapi hand VM.receive and VM.migrate to the daemon on this machine."""
    path = (state_dir / (socket or "api.sock")).absolute()
    try:
        for done in extensions.install(state_dir / _MANIFEST, extensions_dir.absolute(), path):
            click.echo(f"installed {done}")
    except extensions.NotInstalled as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"It could not be installed: {error}.") from None
    click.echo(f"The daemon has to serve its API there: --set api_socket={path}")


@click.command("uninstall-extensions")
@_STATE
def uninstall_extensions(state_dir: Path) -> int:
    """Remove what install-extensions has put there, and nothing else."""
    try:
        removed, kept = extensions.uninstall(state_dir / _MANIFEST)
    except extensions.NotInstalled as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(f"It could not be removed: {error}.") from None
    for path in removed:
        click.echo(f"removed {path}")
    for path in kept:
        click.echo(f"kept {path}: it is not what was installed", err=True)
    return ExitCode.FAILED if kept else ExitCode.DONE
