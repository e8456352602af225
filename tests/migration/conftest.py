from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from xapi_migrate.testing.two_hosts import TwoHosts


@pytest.fixture
def world() -> TwoHosts:
    """Two hosts in one process, on one clock."""
    return TwoHosts(Clock())
