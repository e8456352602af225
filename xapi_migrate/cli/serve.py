"""xapi-migrate serve: the daemon in the foreground."""

from __future__ import annotations

import sys

import click

from .failures import ExitCode, Refused


@click.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    short_help="Run the daemon (the options of `twist xapi-migrate`).",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> int:
    """Run the daemon in the foreground until SIGINT or SIGTERM. --help shows its options."""
    from twisted.internet import reactor
    from twisted.logger import globalLogBeginner
    from twisted.python.usage import UsageError

    from .._tap import Options, makeService
    from ..logs import text_observer

    options = Options()
    options.synopsis = "Usage: xapi-migrate serve [options]"
    try:
        options.parseOptions(["--help" if word == "-h" else word for word in arguments])  # type: ignore[no-untyped-call]
    except UsageError as error:
        raise Refused(f"{error} (--help shows the options.)", ExitCode.USAGE) from None
    globalLogBeginner.beginLoggingTo([text_observer(sys.stdout)], redirectStandardIO=False)
    service = makeService(options, reactor)
    service.startService()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    reactor.run()
    if service.problem:
        raise Refused(service.problem)
    return ExitCode.DONE
