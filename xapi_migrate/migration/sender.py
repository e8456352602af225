"""The sender's machine: states and transitions, nothing else.

It has no clock, no socket and no disk: `ISenderWork` does what a state is about and tells the machine
how it ended. Each state says what is true while it lasts; the rule that a domain in doubt is neither
resumed nor destroyed is the shape of this table.

The guest's domain belongs to the sender in every state up to Releasing. From WritingDone on the receiver's word
decides, and only Committed or Aborted leads out.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder
from zope.interface import Interface


class ISenderWork(Interface):
    """What the states are about. Each call begins its work and returns at once; the work ends with one of the
    machine's inputs. Beginning one work stops the one before."""

    def connect() -> None:
        """Phase 1 -> connected."""

    def prepare() -> None:
        """Phase 2 -> prepared."""

    def copy_disks() -> None:
        """Phase 3 -> copied (memory is due) or copied_at_rest (there is no memory to send)."""

    def send_memory() -> None:
        """Steps 4.1 to 4.3 -> suspended."""

    def release() -> None:
        """Steps 4.4, 4.5, and the answer to 4.1 -> released. Goes on with what send_memory began."""

    def write_done() -> None:
        """Journal that `done` will be said -> done_written."""

    def say_done() -> None:
        """Step 5.1 -> committed, aborted or undecided."""

    def ask() -> None:
        """In doubt: ask what was decided, for as long as it takes -> committed or aborted."""

    def withdraw(reason: Exception | None) -> None:
        """Not to be, from the writing of DONE on: DELETE until it is answered -> committed or aborted."""

    def clean_up() -> None:
        """Steps 5.3, 5.4, the source's records and disks, the acknowledgement -> cleaned."""

    def roll_back(reason: Exception) -> None:
        """Disks active, domain running, the receiver told -> rolled_back. Never fails."""

    def succeed() -> None:
        """The end: the VM is at the receiver."""

    def fail() -> None:
        """The end: the VM is where it was."""


class Sender(Protocol):
    """The machine's inputs."""

    def begin(self) -> None:
        """A new migration."""

    def connected(self) -> None:
        """A URI answered 200 (1.5)."""

    def prepared(self) -> None:
        """The receiver has the metadata and has offered every disk (2.1 to 2.5)."""

    def copied(self) -> None:
        """All copies are ready (3.7), memory is next."""

    def copied_at_rest(self) -> None:
        """All copies are ready (3.7) and the VM has no memory to send."""

    def suspended(self) -> None:
        """The domain has finally suspended (4.3)."""

    def released(self) -> None:
        """All VDIs are deactivated, all copies finished (4.5), the receiver has the memory."""

    def done_written(self) -> None:
        """The journal says DONE."""

    def committed(self) -> None:
        """The receiver says that it has durably decided to run the VM."""

    def aborted(self, reason: Exception) -> None:
        """The receiver says that it never will."""

    def undecided(self) -> None:
        """`done` got no answer that decides."""

    def failed(self, reason: Exception) -> None:
        """The work of this state could not be done, or the heartbeat was lost."""

    def cancel(self, reason: Exception) -> None:
        """The client, or the VM's own end, wants it stopped."""

    def cleaned(self) -> None:
        """Nothing of the VM is left here."""

    def rolled_back(self) -> None:
        """The VM is as it was."""

    def recover_open(self) -> None:
        """Found after a restart in a phase before 4: it goes on, from phase 1 again. Everything up to there may be
        repeated, and finds what is there."""

    def recover_undone(self, reason: Exception) -> None:
        """Found after a restart in phase 4 without DONE in the journal, with UNDONE, or with ABORTED."""

    def recover_in_doubt(self) -> None:
        """Found after a restart with DONE in the journal and no answer."""

    def recover_committed(self) -> None:
        """Found after a restart with COMMITTED in the journal."""


_build = TypeMachineBuilder(Sender, ISenderWork)

idle = _build.state("Idle")
connecting = _build.state("Connecting")
preparing = _build.state("Preparing")
copying_disks = _build.state("CopyingDisks")
sending_memory = _build.state("SendingMemory")
releasing = _build.state("Releasing")
writing_done = _build.state("WritingDone")
saying_done = _build.state("SayingDone")
in_doubt = _build.state("InDoubt")
withdrawing = _build.state("Withdrawing")
cleaning_up = _build.state("CleaningUp")
rolling_back = _build.state("RollingBack")
completed = _build.state("Completed")
failed = _build.state("Failed")


@idle.upon(Sender.begin).to(connecting)
@idle.upon(Sender.recover_open).to(connecting)
def _connect(sender: Sender, work: ISenderWork) -> None:
    work.connect()


@connecting.upon(Sender.connected).to(preparing)
def _prepare(sender: Sender, work: ISenderWork) -> None:
    work.prepare()


@preparing.upon(Sender.prepared).to(copying_disks)
def _copy_disks(sender: Sender, work: ISenderWork) -> None:
    work.copy_disks()


@copying_disks.upon(Sender.copied).to(sending_memory)
def _send_memory(sender: Sender, work: ISenderWork) -> None:
    work.send_memory()


@copying_disks.upon(Sender.copied_at_rest).to(releasing)
@sending_memory.upon(Sender.suspended).to(releasing)
def _release(sender: Sender, work: ISenderWork) -> None:
    work.release()


@releasing.upon(Sender.released).to(writing_done)
def _write_done(sender: Sender, work: ISenderWork) -> None:
    work.write_done()


@writing_done.upon(Sender.done_written).to(saying_done)
def _say_done(sender: Sender, work: ISenderWork) -> None:
    work.say_done()


# In doubt: no `failed` leads out of these three, whatever happens to the work.
@idle.upon(Sender.recover_in_doubt).to(in_doubt)
@saying_done.upon(Sender.undecided).to(in_doubt)
@in_doubt.upon(Sender.undecided).to(in_doubt)
def _ask(sender: Sender, work: ISenderWork) -> None:
    work.ask()


@saying_done.upon(Sender.failed).to(in_doubt)
@in_doubt.upon(Sender.failed).to(in_doubt)
def _ask_after_failure(sender: Sender, work: ISenderWork, reason: Exception) -> None:
    work.ask()


# `done` was not said but may be in the journal, and a restarted daemon would say it: the receiver has to exclude that.
@writing_done.upon(Sender.failed).to(withdrawing)
@writing_done.upon(Sender.cancel).to(withdrawing)
@saying_done.upon(Sender.cancel).to(withdrawing)
@in_doubt.upon(Sender.cancel).to(withdrawing)
@withdrawing.upon(Sender.failed).to(withdrawing)
def _withdraw(sender: Sender, work: ISenderWork, reason: Exception) -> None:
    work.withdraw(reason)


@withdrawing.upon(Sender.undecided).to(withdrawing)
def _withdraw_again(sender: Sender, work: ISenderWork) -> None:
    work.withdraw(None)


@idle.upon(Sender.recover_committed).to(cleaning_up)
@saying_done.upon(Sender.committed).to(cleaning_up)
@in_doubt.upon(Sender.committed).to(cleaning_up)
@withdrawing.upon(Sender.committed).to(cleaning_up)
def _clean_up(sender: Sender, work: ISenderWork) -> None:
    work.clean_up()


@idle.upon(Sender.recover_undone).to(rolling_back)
@connecting.upon(Sender.failed).to(rolling_back)
@connecting.upon(Sender.cancel).to(rolling_back)
@preparing.upon(Sender.failed).to(rolling_back)
@preparing.upon(Sender.cancel).to(rolling_back)
@copying_disks.upon(Sender.failed).to(rolling_back)
@copying_disks.upon(Sender.cancel).to(rolling_back)
@sending_memory.upon(Sender.failed).to(rolling_back)
@sending_memory.upon(Sender.cancel).to(rolling_back)
@releasing.upon(Sender.failed).to(rolling_back)
@releasing.upon(Sender.cancel).to(rolling_back)
@saying_done.upon(Sender.aborted).to(rolling_back)
@in_doubt.upon(Sender.aborted).to(rolling_back)
@withdrawing.upon(Sender.aborted).to(rolling_back)
def _roll_back(sender: Sender, work: ISenderWork, reason: Exception) -> None:
    work.roll_back(reason)


@cleaning_up.upon(Sender.cleaned).to(completed)
def _succeed(sender: Sender, work: ISenderWork) -> None:
    work.succeed()


@rolling_back.upon(Sender.rolled_back).to(failed)
def _fail(sender: Sender, work: ISenderWork) -> None:
    work.fail()


# Too late to matter.
for _state in (cleaning_up, rolling_back, completed, failed):
    for _input in (Sender.cancel, Sender.failed):
        _state.upon(_input).loop().returns(None)
withdrawing.upon(Sender.cancel).loop().returns(None)

build_sender = _build.build()
