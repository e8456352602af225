"""The contract suites, on a tgtd of each test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from private_target import PrivateTarget, private_target
from sm_iscsi.driver import ISCSIDriver

from xapi_migrate.testing.adapters import for_pytest
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, SR_CHECKS
from xapi_migrate.testing.sr_hosts import one_sr, two_srs


@asynccontextmanager
async def by_itself(folder: Path) -> AsyncIterator[Any]:
    async with (
        private_target(folder / "t") as target,
        one_sr(ISCSIDriver(), lambda _: target.config(), folder) as make,
    ):
        yield make


@asynccontextmanager
async def on_two_hosts(folder: Path) -> AsyncIterator[Any]:
    """Two SRs on two targets."""
    async with private_target(folder / "t", luns=4) as ours, private_target(folder / "u", luns=4) as theirs:

        def side(target: PrivateTarget) -> Any:
            return ISCSIDriver(), lambda _: target.config()

        async with two_srs(side(ours), side(theirs), folder) as kit:
            yield kit


test_backend = pytest.mark.system(for_pytest(BACKEND_CHECKS, by_itself))
test_sr = pytest.mark.system(for_pytest(SR_CHECKS, on_two_hosts))
