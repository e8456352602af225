"""xapi-migrate doctor and force-settle: what an administrator does after the worst."""

from __future__ import annotations

import json
from typing import Any

import click

from .connection import Server, server_option
from .failures import ExitCode, Refused
from .output import json_option, say, show

PLUGIN = "xapi-migrate"
GIVEN_UP = "given-up"
DANGER = {
    "moved": "If the VM does not run at the receiving host, no copy of it runs any more: its memory here is thrown"
    " away. It stays here as a Halted VM with its disks, which must not be started if the other one runs. One of an"
    " upstream's is locked there, for all but VM.destroy.",
    "stays": "If the receiving host runs the VM, or comes back and does, two copies of it run and destroy each other's"
    " data. Make sure that the receiving host is off, or that the VM is gone there.",
    "given-up": "What was begun with the VM is left as it is: it has the disks, the memory and the power state that its"
    " record says now. Nothing is destroyed, and nothing is tidied up. If a disk was being moved and it has the old one"
    " still, what its guest wrote since is on the new VDI alone, which stays in its SR.",
}

DANGER_RECEIVING = {
    "moved": "If the sending host has the VM still, or comes back and has it, there are two of it. Make sure that it is"
    " gone there. Here it is the toolstack's then, unlocked, with its disks.",
    "stays": "If the sending host has given the VM up, no copy of it is left: what was made of it at the toolstack here"
    " is destroyed, with its disks. Make sure that the sending host has it.",
}
"""Where the server was receiving it for a toolstack."""
_DONE = {"moved": "is Halted here, with its disks", "stays": "is here, as it was", "given-up": "is as its record says"}
_DONE_RECEIVING = {
    "moved": "is the toolstack's here; it is unlocked as soon as the toolstack can be told",
    "stays": "is not here; what was made of it at the toolstack goes as soon as the toolstack can be told",
}


@click.command("doctor")
@server_option
@click.option("--remove", is_flag=True, help="Remove what is left behind, after asking.")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
def doctor(server: Server, remove: bool, yes: bool, as_json: bool) -> int:
    """Tell what is left behind on a host (domains, datapaths, copiers, targets, VDIs, records that nobody needs, and
    what waits at a toolstack beside it), what removing it would do, which VMs are in doubt, and which suspend, resume
    or storage motion is not settled, and why. Exit status 1 if something is left."""
    with server.session() as session:
        host = _host(session)
        found = json.loads(_ask(session, host, "leftovers"))
        doubtful = json.loads(_ask(session, host, "in_doubt"))
        received = json.loads(_ask(session, host, "in_doubt_receiving"))
        unsettled = json.loads(_ask(session, host, "unsettled"))
        show(found, ("kind", "name", "why", "remedy"), as_json, "Nothing is left behind.")
        for vm in [] if as_json else doubtful:
            what = "it was received here" if vm in received else "its receiver has it"
            say(f"VM {vm} is in doubt: nothing says whether {what}. See force-settle.")
        for one in [] if as_json else unsettled:
            say(one["why"])
        if not found or not (remove or yes):
            return ExitCode.FAILED if found else ExitCode.DONE
        if not yes:
            click.confirm(f"Remove {'this' if len(found) == 1 else f'these {len(found)}'}?", abort=True, err=True)
        names = [f"{one['kind']}:{one['name']}" for one in found]
        done = json.loads(_ask(session, host, "remove_leftovers", names=json.dumps(names)))
        left = json.loads(_ask(session, host, "leftovers"))
    for sentence in done["failed"]:
        say(sentence, err=True)
    if not as_json:
        say(f"Removed: {len(done['removed'])}. Still there: {len(left)}.")
    return ExitCode.FAILED if left else ExitCode.DONE


@click.command("force-settle")
@server_option
@click.argument("vm")
@click.option("--outcome", type=click.Choice(sorted(DANGER)), required=True,
              help="moved: the receiving host runs the VM. stays: it does not, and never will. given-up: what is not"
              " settled on this host is not tried any more.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask to type the VM's uuid.")
def force_settle(server: Server, vm: str, outcome: str, yes: bool) -> None:
    """Decide about the VM with this UUID that is in doubt: in the receiver's place, where the server is its sender
    and the receiver will never answer again; or in the place of its lost journal, where the server was receiving it for
    a toolstack. A VM that is in doubt otherwise waits for as long as it takes. Or give up a suspend, a resume or a
    storage motion that is not settled (`--outcome given-up`), because an SR never comes back."""
    with server.session() as session:
        host = _host(session)
        given_up = outcome == GIVEN_UP
        waiting = [one["vm"] for one in json.loads(_ask(session, host, "unsettled"))]
        if vm not in (waiting if given_up else json.loads(_ask(session, host, "in_doubt"))):
            what = "unsettled" if given_up else "in doubt"
            raise Refused(f"VM {vm} is not {what} on this host: there is nothing to settle.")
        received = not given_up and vm in json.loads(_ask(session, host, "in_doubt_receiving"))
        say((DANGER_RECEIVING if received else DANGER)[outcome], err=True)
        if not yes and click.prompt("To go on, type the VM's uuid", err=True) != vm:
            raise Refused("That is another uuid: nothing was done.")
        _ask(session, host, "force_settle", vm=vm, outcome=outcome)
    say(f"VM {vm} {(_DONE_RECEIVING if received else _DONE)[outcome]}.")


def _host(session: Any) -> str:
    """The host that the session is with."""
    return str(session.xenapi.session.get_this_host(session.handle))


def _ask(session: Any, host: str, function: str, **arguments: str) -> str:
    return str(session.xenapi.host.call_plugin(host, PLUGIN, function, arguments))
