"""The whole contract against one installed backend: by itself, as sender and as receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import defer, reactor, task

from xapi_migrate.sm.interfaces import ISMDriver
from xapi_migrate.testing.adapters import Check, Kit, run_check
from xapi_migrate.testing.folder_backend import FolderDriver
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, COPY_CHECKS, SR_CHECKS
from xapi_migrate.testing.sr_hosts import Scratch, one_sr, two_srs

HELD = 1.0
"""Seconds: a backend that keeps the reactor busy for longer in one go holds up all migrations of its host."""
_TICK = 0.05


@attrs.frozen
class Verdict:
    """What came of one check. `failure` a sentence, "" when it passed; `held` the longest time in seconds during which
    the reactor did nothing else."""

    part: str
    check: str
    says: str
    failure: str
    seconds: float
    held: float


def parts(driver: ISMDriver, scratch: Scratch) -> Iterator[tuple[str, Kit, tuple[Check, ...]]]:
    """A name, what the checks get, the checks."""
    own, other = (driver, scratch), (FolderDriver(), FolderDriver().scratch)
    yield "backend", partial(one_sr, *own), BACKEND_CHECKS
    yield "sender", partial(two_srs, own, other), SR_CHECKS
    yield "receiver", partial(two_srs, other, own), COPY_CHECKS


async def check_driver(driver: ISMDriver, scratch: Scratch, timeout: float) -> AsyncIterator[Verdict]:
    """All checks, one after the other; each may take `timeout` seconds."""
    for part, kit, checks in parts(driver, scratch):
        for check in checks:
            yield await _judged(part, check, _on_an_empty_sr(driver, scratch, kit), timeout)


async def _judged(part: str, check: Check, kit: Kit, timeout: float) -> Verdict:
    began, failure = reactor.seconds(), ""
    with_pulse = _Pulse()
    running = defer.Deferred.fromCoroutine(run_check(check, kit)).addTimeout(timeout, reactor)
    try:
        await running
    except (TimeoutError, defer.TimeoutError):
        failure = f"it had not ended after {timeout:g} s"
    except Exception as error:
        failure = _sentence(error)
    held = with_pulse.stop()
    says = " ".join((check.__doc__ or "").split())
    return Verdict(part, check.__name__, says, failure, reactor.seconds() - began, held)


class _Pulse:
    """Notices when the reactor is held up."""

    def __init__(self) -> None:
        self._last = reactor.seconds()
        self._longest = 0.0
        self._loop = task.LoopingCall(self._beat)
        self._loop.start(_TICK, now=False)

    def _beat(self) -> None:
        now = reactor.seconds()
        self._longest = max(self._longest, now - self._last - _TICK)
        self._last = now

    def stop(self) -> float:
        self._beat()
        self._loop.stop()
        return self._longest


def _on_an_empty_sr(driver: ISMDriver, scratch: Scratch, kit: Kit) -> Kit:
    """What is there before a check would be taken for its own, and destroyed."""

    @asynccontextmanager
    async def checked(folder: Path) -> AsyncIterator[Any]:
        place = folder / "look"
        place.mkdir()
        async with one_sr(driver, scratch, place, keep=True) as make:
            backend = make()
            await backend.attach()
            found = await backend.scan()
            if found:
                raise AssertionError(f"the SR is no scratch SR: VDI {found[0].uuid} is in it")
        async with kit(folder) as one:
            yield one

    return checked


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    trace = error.__traceback__
    where = ""
    while trace is not None:
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    name = "" if isinstance(error, AssertionError) and text else type(error).__name__
    return f"{': '.join(part for part in (name, text) if part)} ({where})"
