"""The xapi-migrate command: one module per group of commands, loaded when one of them is used."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from .failures import ExitCode, Refused, explained
from .output import say

COMMANDS = {
    "serve": "serve",
    "vm-list": "vm",
    "vm-migrate": "migrate",
    "task-list": "task",
    "task-cancel": "task",
    "sr-list": "storage",
    "sm-list": "storage",
    "sm-check": "sm_check",
    "sm-new": "sm_new",
    "doctor": "doctor",
    "force-settle": "doctor",
    "user-set": "user",
    "user-remove": "user",
    "install-extensions": "extensions",
    "uninstall-extensions": "extensions",
    "lab": "lab",
    "demo": "demo",
}
"""Command -> the module here that has it, under its name with underscores."""


class Commands(click.Group):
    """Loads only the module of the command that is asked for, so that each starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".{COMMANDS[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.command(cls=Commands, epilog=ExitCode.__doc__, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xapi_migrate", prog_name="xapi-migrate")
def command() -> None:
    """Moves virtual machines between hosts, with their disks, while they run."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point. Whatever goes wrong is said in one sentence."""
    try:
        status = command.main(arguments, prog_name="xapi-migrate", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE if isinstance(error, click.UsageError) else ExitCode.FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # or Python complains about the pipe once more
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        refused = error if isinstance(error, Refused) else explained(error)
        if refused is None:
            raise
        say(f"xapi-migrate: {refused}", err=True)
        sys.exit(refused.exit_code)
    sys.exit(status if isinstance(status, int) else ExitCode.DONE)
