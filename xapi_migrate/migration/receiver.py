"""The receiver's machine: states and transitions, nothing else.

The receiver alone decides. Committing and aborting both pass through a state in which the decision is being
written; once one is written nothing leads to the other. `IReceiverWork` does what a state is about.
"""

from __future__ import annotations

from typing import Protocol

from automat import TypeMachineBuilder
from zope.interface import Interface

from ..errors import MigrationAborted, WrongMoment


class IReceiverWork(Interface):
    """What the states are about. Each call begins its work and returns at once; the work ends with one of the
    machine's inputs. Beginning one work stops the one before."""

    def prepare() -> None:
        """Step 2.1: check, create the hidden VM and its VDIs -> prepared or prepared_at_rest."""

    def receive_memory() -> None:
        """Steps 4.1, 4.2: restore the domain, paused -> memory_in."""

    def activate() -> None:
        """Close the LUNs, activate the VDIs -> activated."""

    def write_commit() -> None:
        """Journal COMMITTED -> commit_written, or undecidable."""

    def complete() -> None:
        """Step 5.2: unpause, power state, identity, unhide -> completed. Only forward: never fails."""

    def shut(reason: Exception) -> None:
        """Kill the domain, shut the disks -> is_shut. Never fails."""

    def write_abort(reason: Exception) -> None:
        """Journal ABORTED -> abort_written, or undecidable."""

    def clean_up() -> None:
        """Remove VDIs, LUNs and records -> cleaned. Never fails."""

    def decide_nothing() -> None:
        """The journal cannot be written: neither outcome may be told until a restart has read it."""

    def end_unused(reason: Exception) -> None:
        """Expired or withdrawn before anything came: aborted, and forgotten."""

    def end() -> None:
        """Acknowledged: forget the migration."""


class Receiver(Protocol):
    """The machine's inputs."""

    def put_metadata(self) -> None:
        """PUT metadata has come (2.1)."""

    def prepared(self) -> None:
        """Everything for a VM with memory is there."""

    def prepared_at_rest(self) -> None:
        """Everything for a VM without memory is there."""

    def put_memory(self) -> None:
        """PUT memory has come (4.1)."""

    def memory_in(self) -> None:
        """The domain is restored and paused."""

    def done(self) -> None:
        """PUT control `done` has come (5.1). WrongMoment before the memory is in."""

    def activated(self) -> None:
        """All VDIs are active."""

    def commit_written(self) -> None:
        """COMMITTED is durable."""

    def completed(self) -> None:
        """The VM has its final power state and identity."""

    def failed(self, reason: Exception) -> None:
        """The work of this state could not be done, or what the sender copies into died."""

    def abort(self, reason: Exception) -> None:
        """DELETE, a cancel of the receiver's task, or the heartbeat lost."""

    def is_shut(self) -> None:
        """No domain, no open disk."""

    def abort_written(self) -> None:
        """ABORTED is durable."""

    def undecidable(self, reason: Exception) -> None:
        """A decision could not be written, or not for sure."""

    def cleaned(self) -> None:
        """Nothing of the VM is left here."""

    def acknowledged(self) -> None:
        """DELETE that names the outcome: the sender knows it."""

    def expire(self) -> None:
        """The offer's life is over."""

    def recover_open(self) -> None:
        """Found after a restart in phase 2 or 3, a VM with memory, all that the sender uses alive."""

    def recover_open_at_rest(self) -> None:
        """The same of a VM without memory."""

    def recover_undecided(self, reason: Exception) -> None:
        """Found after a restart without a decision in the journal, and not so that it could go on."""

    def recover_aborted(self) -> None:
        """Found after a restart with ABORTED in the journal."""

    def recover_committed(self) -> None:
        """Found after a restart with COMMITTED in the journal."""

    def recover_completed(self) -> None:
        """Found after a restart with COMMITTED and ENDED in the journal."""


_build = TypeMachineBuilder(Receiver, IReceiverWork)

offered = _build.state("Offered")
preparing = _build.state("Preparing")
awaiting_memory = _build.state("AwaitingMemory")
receiving_memory = _build.state("ReceivingMemory")
awaiting_done = _build.state("AwaitingDone")
activating = _build.state("Activating")
writing_commit = _build.state("WritingCommit")
completing = _build.state("Completing")
committed = _build.state("Committed")
shutting = _build.state("Shutting", lambda receiver, work, reason: reason)
writing_abort = _build.state("WritingAbort")
cleaning_up = _build.state("CleaningUp")
aborted = _build.state("Aborted")
undecided = _build.state("Undecided")
gone = _build.state("Gone")


@offered.upon(Receiver.put_metadata).to(preparing)
def _prepare(receiver: Receiver, work: IReceiverWork) -> None:
    work.prepare()


preparing.upon(Receiver.prepared).to(awaiting_memory).returns(None)
preparing.upon(Receiver.prepared_at_rest).to(awaiting_done).returns(None)


offered.upon(Receiver.recover_open).to(awaiting_memory).returns(None)
offered.upon(Receiver.recover_open_at_rest).to(awaiting_done).returns(None)


@awaiting_memory.upon(Receiver.put_memory).to(receiving_memory)
def _receive_memory(receiver: Receiver, work: IReceiverWork) -> None:
    work.receive_memory()


receiving_memory.upon(Receiver.memory_in).to(awaiting_done).returns(None)


@awaiting_done.upon(Receiver.done).to(activating)
def _activate(receiver: Receiver, work: IReceiverWork) -> None:
    work.activate()


@activating.upon(Receiver.activated).to(writing_commit)
def _write_commit(receiver: Receiver, work: IReceiverWork) -> None:
    work.write_commit()


@offered.upon(Receiver.recover_committed).to(completing)
@writing_commit.upon(Receiver.commit_written).to(completing)
def _complete(receiver: Receiver, work: IReceiverWork) -> None:
    work.complete()


completing.upon(Receiver.completed).to(committed).returns(None)
offered.upon(Receiver.recover_completed).to(committed).returns(None)  # the VM is its owner's since: hands off


# Before COMMIT everything that goes wrong leads here.
@offered.upon(Receiver.recover_undecided).to(shutting)
@preparing.upon(Receiver.failed).to(shutting)
@preparing.upon(Receiver.abort).to(shutting)
@awaiting_memory.upon(Receiver.failed).to(shutting)
@awaiting_memory.upon(Receiver.abort).to(shutting)
@receiving_memory.upon(Receiver.failed).to(shutting)
@receiving_memory.upon(Receiver.abort).to(shutting)
@awaiting_done.upon(Receiver.failed).to(shutting)
@awaiting_done.upon(Receiver.abort).to(shutting)
@activating.upon(Receiver.failed).to(shutting)
@activating.upon(Receiver.abort).to(shutting)
def _shut(receiver: Receiver, work: IReceiverWork, reason: Exception) -> None:
    work.shut(reason)


@shutting.upon(Receiver.is_shut).to(writing_abort)
def _write_abort(receiver: Receiver, work: IReceiverWork, reason: Exception) -> None:
    work.write_abort(reason)


@offered.upon(Receiver.recover_aborted).to(cleaning_up)
@writing_abort.upon(Receiver.abort_written).to(cleaning_up)
def _clean_up(receiver: Receiver, work: IReceiverWork) -> None:
    work.clean_up()


cleaning_up.upon(Receiver.cleaned).to(aborted).returns(None)


@writing_commit.upon(Receiver.undecidable).to(undecided)
@writing_abort.upon(Receiver.undecidable).to(undecided)
def _decide_nothing(receiver: Receiver, work: IReceiverWork, reason: Exception) -> None:
    work.decide_nothing()


@committed.upon(Receiver.acknowledged).to(gone)
@aborted.upon(Receiver.acknowledged).to(gone)
def _end(receiver: Receiver, work: IReceiverWork) -> None:
    work.end()


# Nothing was promised, nothing is there.
@offered.upon(Receiver.abort).to(gone)
def _withdraw(receiver: Receiver, work: IReceiverWork, reason: Exception) -> None:
    work.end_unused(reason)


@offered.upon(Receiver.expire).to(gone)
def _expire(receiver: Receiver, work: IReceiverWork) -> None:
    work.end_unused(MigrationAborted("its offer has expired"))


@offered.upon(Receiver.done).loop()
@preparing.upon(Receiver.done).loop()
@awaiting_memory.upon(Receiver.done).loop()
@receiving_memory.upon(Receiver.done).loop()
def _too_early(receiver: Receiver, work: IReceiverWork) -> None:
    raise WrongMoment("PUT control done", "waiting for the VM's metadata and memory")


# A repeat of `done` waits for the decision with the first; after the decision it is told. Nothing aborts a commit
# that is being written, nothing commits after an abort has begun.
_after_done = (
    activating,
    writing_commit,
    completing,
    committed,
    shutting,
    writing_abort,
    cleaning_up,
    aborted,
    undecided,
    gone,
)
for _state in _after_done:
    _state.upon(Receiver.done).loop().returns(None)
for _state in (writing_commit, completing, committed, shutting, writing_abort, cleaning_up, aborted, undecided, gone):
    _state.upon(Receiver.abort).loop().returns(None)
for _state in (shutting, writing_abort, cleaning_up, aborted, completing, committed, undecided, gone):
    _state.upon(Receiver.failed).loop().returns(None)
for _state in (completing, cleaning_up, shutting, writing_abort, writing_commit, undecided, gone):
    _state.upon(Receiver.acknowledged).loop().returns(None)

build_receiver = _build.build()
