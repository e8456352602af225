"""The contract suites for two test runners. A suite is a list of `async def check_*(kit)`; `kit` makes what they take,
as an asynchronous context manager, out of an empty folder."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from twisted.internet import defer

Check = Callable[[Any], Awaitable[None]]
Kit = Callable[[Path], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def short_folder() -> AsyncIterator[Path]:
    """A folder whose path leaves room for a unix socket's name, which has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="x", dir="/tmp") as name:
        yield Path(name).resolve()


async def run_check(check: Check, kit: Kit) -> None:
    """One check in a folder of its own. What it raises is its verdict."""
    async with short_folder() as folder, kit(folder) as one:
        await check(one)


def for_pytest(checks: Sequence[Check], kit: Kit) -> Callable[..., Any]:
    """A test function for a module's `test_...` name; needs pytest-twisted."""
    import pytest
    import pytest_twisted  # type: ignore[import-untyped]

    @pytest.mark.parametrize("check", checks, ids=lambda check: str(check.__name__))
    @pytest_twisted.ensureDeferred  # type: ignore[untyped-decorator]
    async def test(check: Check) -> None:
        await run_check(check, kit)

    made: Callable[..., Any] = test
    return made


def for_trial(checks: Sequence[Check], kit: Kit) -> type:
    """A class for twisted.trial, to be given a name in a test module."""
    from twisted.trial.unittest import TestCase

    def method(check: Check) -> Callable[[Any], defer.Deferred[None]]:
        return lambda self: defer.Deferred.fromCoroutine(run_check(check, kit))

    return type("ContractTests", (TestCase,), {f"test_{check.__name__}": method(check) for check in checks})
