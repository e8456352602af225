"""One migration as its client drives it: steps 1.1 to 1.4 of the sequence, then following the task.

Nothing here prints; `follow` tells a watcher what there is to show.
"""

from __future__ import annotations

import contextlib
import http.client
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import XenAPI

from .failures import ExitCode, Refused, sentence
from .names import NULL, readable, sr_by_name, vdi_by_name, vm_by_name

POLL = 0.25
"""Seconds between two looks at the task."""

PATIENCE = 60.0
"""Seconds for which a sending host that does not answer is asked again."""

UNANSWERED = (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError)
"""What the client's libraries raise when a server does not answer."""


@attrs.frozen
class Wish:
    """What is to move where. `vm`, `sr` and both sides of `vdi_srs` are uuids or names; `sr` "" is the
    receiver's default SR. `options` go to VM.receive and VM.migrate as they are."""

    vm: str
    sr: str = ""
    vdi_srs: Mapping[str, str] = attrs.Factory(dict)
    options: Mapping[str, str] = attrs.Factory(dict)


@attrs.frozen
class Progress:
    """How far it is: 0..1, and the step of the sequence with its id ("3.6 ...")."""

    fraction: float
    step: str
    in_doubt: str = ""


@attrs.frozen
class Moved:
    """How it ended well. `downtime_ms` None where the sender did not measure one (a VM that was not running)."""

    name_label: str
    uuid: str
    host: str
    power_state: str
    seconds: float
    downtime_ms: float | None


class Migration:
    """`prepare`, `start`, then `follow` to its end; `cancel` in between asks for its end."""

    def __init__(self, sender: Any, receiver: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._sender = sender
        self._receiver = receiver
        self._clock = clock
        self._arguments: tuple[Any, ...] = ()
        self._task = ""
        self._began = 0.0
        self._shown = Progress(0.0, "")
        self.task_uuid = ""
        self.name_label = ""
        self.uuid = ""

    def prepare(self, wish: Wish) -> None:
        """Step 1.2; both sessions are logged in already (1.1, 1.3). Nothing has begun yet."""
        sender, receiver = self._sender.xenapi, self._receiver.xenapi
        vm = vm_by_name(self._sender, wish.vm)
        record = sender.VM.get_record(vm)
        self.name_label, self.uuid = record["name_label"], record["uuid"]
        if record["resident_on"] == receiver.session.get_this_host(self._receiver.handle):
            raise Refused(f"{self.name_label} stays where it is: it runs on the host at --to-url already.")
        vdi_srs = {
            vdi_by_name(self._sender, vm, vdi): sr_by_name(self._receiver, sr) for vdi, sr in wish.vdi_srs.items()
        }
        sr = sr_by_name(self._receiver, wish.sr) if wish.sr else self._default_sr(bool(wish.vdi_srs))
        self._began = self._clock()
        uris = self._asked(self._receiver, receiver.VM.receive, sr, dict(wish.options))
        self._arguments = vm, uris, vdi_srs, dict(wish.options)

    def start(self) -> None:
        """Step 1.4."""
        sender = self._sender.xenapi
        self._task = self._asked(self._sender, sender.Async.VM.migrate, *self._arguments)
        self.task_uuid = sender.task.get_uuid(self._task)

    def follow(
        self, watch: Callable[[Progress], None], interrupted: Callable[[], bool] = lambda: False, poll: float = POLL
    ) -> Moved | None:
        """Until the task has ended, or None as soon as `interrupted` says so. Refused with the reason if the VM did
        not move."""
        while True:
            task = self._look(watch, interrupted, poll)
            if task is None:
                return None
            other = task["other_config"]
            step = other.get("step", "")
            if "waiting" in other:
                step = f"waits {other['waiting']}, behind {other.get('behind', 'others')}"
            self._shown = Progress(float(task["progress"]), step, other.get("in_doubt", ""))
            watch(self._shown)
            if task["status"] not in ("pending", "cancelling"):
                break
            if interrupted():
                return None
            time.sleep(poll)
        seconds = self._clock() - self._began
        with contextlib.suppress(XenAPI.Failure):
            self._sender.xenapi.task.destroy(self._task)
        if task["status"] == "success":
            return self._moved(seconds, other.get("downtime_ms"))
        if task["status"] == "cancelled":
            raise Refused(
                f"The migration of {self.name_label} was cancelled: it stays where it was.", ExitCode.CANCELLED
            )
        reason = sentence(task["error_info"], lambda ref: readable((self._sender, self._receiver), ref))
        step = f" (last step: {other['step']})" if other.get("step") else ""
        raise Refused(f"{self.name_label} did not move: {reason}{step}")

    def cancel(self) -> str:
        """Ask for the end of it; what came of the request, as a sentence."""
        try:
            self._sender.xenapi.task.cancel(self._task)
        except XenAPI.Failure as failure:
            return f"It cannot be cancelled now: {sentence(failure.details)}"
        except UNANSWERED:
            return "It was not cancelled: the sending host does not answer."
        return "Cancelling, and waiting for the clean-up."

    def _look(
        self, watch: Callable[[Progress], None], interrupted: Callable[[], bool], poll: float
    ) -> dict[str, Any] | None:
        """The task's record; None when `interrupted`. A sending host that does not answer is asked
        again for a while: its daemon may be starting anew, and then goes on or rolls back."""
        deadline = self._clock() + PATIENCE
        while True:
            try:
                record: dict[str, Any] = self._sender.xenapi.task.get_record(self._task)
                return record
            except XenAPI.Failure as failure:
                raise Refused(
                    f"The sending host no longer knows the task of {self.name_label} ({sentence(failure.details)}): "
                    "vm-list on both hosts shows where the VM is."
                ) from None
            except UNANSWERED:
                if interrupted():
                    return None
                if self._clock() > deadline:
                    raise
                watch(Progress(self._shown.fraction, "the sending host does not answer"))
                time.sleep(max(poll, 0.1))

    def _moved(self, seconds: float, downtime: str | None) -> Moved:
        receiver = self._receiver.xenapi
        record = receiver.VM.get_record(receiver.VM.get_by_uuid(self.uuid))
        host = record["resident_on"]
        return Moved(
            self.name_label, self.uuid, receiver.host.get_name_label(host) if host != NULL else "",
            record["power_state"], seconds, float(downtime) if downtime else None,
        )  # fmt: skip

    def _default_sr(self, mapped: bool) -> str:
        """The receiver's default SR, else its only one; none where the disks are `mapped`, which must then be all."""
        receiver = self._receiver.xenapi
        default: str = receiver.pool.get_default_SR(receiver.pool.get_all()[0])
        if default != NULL:
            return default
        srs: list[str] = [sr for sr in receiver.SR.get_all() if receiver.SR.get_content_type(sr) != "iso"]
        if len(srs) == 1:
            return srs[0]
        if mapped:
            return NULL
        raise Refused("The receiving host has no default SR: name one with --sr (sr-list shows which there are).")

    def _asked(self, session: Any, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except XenAPI.Failure as failure:
            reason = sentence(failure.details, lambda ref: readable((session,), ref))
            raise Refused(f"{self.name_label} did not move: {reason}") from None
