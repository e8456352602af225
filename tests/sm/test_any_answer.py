"""Whatever a backend answers, raises or does not answer: a value of the call's type, or SrBackendFailure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import defer, task

from tests.sm.test_guarded import VDI, Answering
from xapi_migrate.errors import SrBackendFailure
from xapi_migrate.sm.guarded import GuardedBackend
from xapi_migrate.sm.interfaces import CopyStatus, ImageFormat, ImageLocation, ImageNode, SRStat, TargetUrl, VDIInfo
from xapi_migrate.together import started


class Mute:
    def __repr__(self) -> str:
        raise ZeroDivisionError


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


class WithAll(Answering):
    """The optional calls too."""

    def vdi_resize(self, *_: object) -> Any:
        return self.does()

    vdi_get_url = vdi_close_url = vdi_copy = vdi_resize


URL = TargetUrl("iscsi://127.0.0.1:1/iqn/1", "a", "b")
CALLS: dict[str, tuple[tuple[Any, ...], Callable[[Any], bool]]] = {
    "attach": ((), lambda answer: answer is None),
    "detach": ((), lambda answer: answer is None),
    "stat": ((), lambda answer: isinstance(answer, SRStat)),
    "scan": ((), lambda answer: all(isinstance(info, VDIInfo) for info in answer)),
    "vdi_create": ((VDI, 512), lambda answer: isinstance(answer, VDIInfo)),
    "vdi_resize": ((VDI, 512), lambda answer: isinstance(answer, VDIInfo)),
    "vdi_destroy": ((VDI,), lambda answer: answer is None),
    "vdi_location": (
        (VDI,),
        lambda answer: isinstance(answer, ImageNode) or isinstance(answer, ImageLocation) and answer.path.is_absolute(),
    ),
    "nonce_write": ((VDI, "x"), lambda answer: answer is None),
    "nonce_read": ((VDI,), lambda answer: isinstance(answer, str) and answer.encode() is not None),
    "vdi_get_url": ((VDI, "m", "::1", True), lambda answer: answer is None or isinstance(answer.url, str)),
    "vdi_close_url": ((VDI, "m"), lambda answer: answer is None),
    "vdi_copy": ((VDI, URL, "t", None, False), lambda answer: answer is None),
}
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, 512, -512]), st.floats(), st.text(max_size=9),
    st.just("\ud800"), st.binary(max_size=9), st.just(VDI), st.just(Path("/x")), st.just(Path("x")),
    st.sampled_from(ImageFormat), st.builds(Mute),
)  # fmt: skip
TYPED = st.one_of(
    st.builds(SRStat, PLAIN, PLAIN, PLAIN), st.builds(VDIInfo, PLAIN, PLAIN, PLAIN),
    st.builds(ImageLocation, PLAIN, PLAIN, PLAIN), st.builds(ImageNode, PLAIN, PLAIN, PLAIN),
    st.builds(TargetUrl, PLAIN, PLAIN, PLAIN),
)  # fmt: skip
ANSWERS = st.recursive(
    PLAIN | TYPED, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
RAISED = st.sampled_from([ValueError("x"), Unspeakable(), defer.CancelledError(), OSError(5, "x"), StopIteration()])
WAYS = ("now", "now", "now", "plain", "fails", "raises", "never")


@settings(max_examples=200)
@given(way=st.sampled_from(WAYS), answer=ANSWERS, raised=RAISED)
def test_it_is_a_value_of_its_type_or_a_failure_of_the_sr(way: str, answer: Any, raised: Exception) -> None:
    for call in CALLS:
        look_at(call, way, answer, raised)


def look_at(call: str, way: str, answer: Any, raised: Exception) -> None:
    def does() -> Any:
        match way:
            case "now":
                return defer.succeed(answer)
            case "plain":
                return answer
            case "fails":
                return defer.fail(raised)
            case "never":
                return defer.Deferred()
        raise raised

    clock = task.Clock()
    arguments, fits = CALLS[call]
    got: list[Any] = []
    asked = started(getattr(GuardedBackend("sr", WithAll(does), clock, 5.0), call)(*arguments))
    asked.addBoth(got.append)
    clock.advance(6)
    clock.advance(6)
    assert got, f"{call}: no answer"
    if isinstance(got[0], BaseException) or hasattr(got[0], "check"):
        assert got[0].check(SrBackendFailure), f"{call}: {got[0]!r}"
        assert all(isinstance(part, str) for part in got[0].value.failure())
    else:
        assert fits(got[0]), call
    assert not clock.getDelayedCalls()


@given(answer=ANSWERS | st.builds(CopyStatus, PLAIN, PLAIN, PLAIN), raises=st.booleans())
def test_where_a_copy_is_that_a_backend_makes_itself(answer: Any, raises: bool) -> None:
    class Copy:
        @property
        def status(self) -> Any:
            if raises:
                raise Unspeakable
            return answer

    copy: Any = Copy()
    with pytest.raises(SrBackendFailure):
        GuardedBackend("sr", WithAll(lambda: None), task.Clock(), 5.0).copy_status(VDI, copy)
