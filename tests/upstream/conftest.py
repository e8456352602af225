from __future__ import annotations

import pytest

from tests.upstream.toolstacks import KINDS


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Of the toolstack beside which a host stands."""
    return str(request.param)
