"""What the receiver has decided, and who waits to hear it."""

from __future__ import annotations

from twisted.internet import defer

from ..errors import WrongMoment
from ..moment import Moment
from .interfaces import Answer, Outcome


class Decision:
    """Open; then, once it is durable, committed or aborted for ever. `answer` is what GET control says (5.1)."""

    def __init__(self) -> None:
        self.answer = Answer(Outcome.OPEN)
        self.acknowledged = False
        """The sender knows it. It may say so before all that follows from the decision is done."""
        self._told: Moment[Answer] = Moment()
        self._taken_up: Moment[None] = Moment()

    @property
    def is_told(self) -> bool:
        return self._told.happened

    def await_it(self) -> defer.Deferred[Answer]:
        """Fires with the answer when it is told. WrongMoment if nothing can be decided before a restart."""
        return self._told.wait()

    def await_taken_up(self) -> defer.Deferred[None]:
        """After a restart: fires when the migration goes on, or the decision is durable; or when it cannot be made so
        for now, and nothing will be answered before it is."""
        return self._taken_up.wait()

    def is_durable(self, answer: Answer) -> None:
        """It is in the journal, or follows from what is there. Those who wait are told later, by `tell`."""
        self.answer = answer
        self.take_up()

    def tell(self) -> None:
        self._told.happen(self.answer)

    def take_up(self) -> None:
        self._taken_up.happen(None)

    def cannot_be_made(self) -> None:
        """The journal cannot be written."""
        self.take_up()
        self._told.fail(
            WrongMoment("the question what was decided", "undecided until the receiver's daemon is restarted")
        )
