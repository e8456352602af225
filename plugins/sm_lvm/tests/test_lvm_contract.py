"""The contract suites on the stand-in for LVM's commands; on real LVM they run by `make test-lvm`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import pytest_twisted
from fake_group import FakeGroup

from xapi_migrate.sm.interfaces import ISRBackend
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS


@pytest.mark.parametrize("pool", ["", "pool"], ids=["thick", "thin"])
@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda check: check.__name__)
@pytest_twisted.ensureDeferred
async def test_lvm_backend(
    check: Callable[[Callable[[], ISRBackend]], Awaitable[None]], pool: str, group: FakeGroup
) -> None:
    sr = {"thin_pool": pool} if pool else {}
    await check(lambda: group.sr(**sr))
    assert group.volumes() == {"pool"} and group.tags() == ["of_somebody"]
    assert group.active() == []
