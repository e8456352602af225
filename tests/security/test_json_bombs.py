"""The kin that XML bombs have in JSON, within the size that a request may have."""

from __future__ import annotations

import time

import pytest

from xapi_migrate.errors import InvalidValue
from xapi_migrate.uris import wire as uris_wire
from xapi_migrate.xenapi import jsonrpc
from xapi_migrate.xenapi.wire import Malformed

LIMIT = 300 << 10
CALL = '{"method": "m", "params": [%s]}'
BOMBS = {
    "depth": "[" * (LIMIT - 1),
    "depth in a call": CALL % ("[" * 100_000 + "]" * 100_000),
    "depth of objects": CALL % ('{"a":' * 40_000 + "1" + "}" * 40_000),
    "a number": CALL % ("9" * 290_000),
    "a negative number": CALL % ("-" + "9" * 290_000),
    "width": CALL % ("[]," * 100_000 + "[]"),
    "surrogates": CALL % ('"' + "\\ud800" * 40_000 + '"'),
    "nothing": "",
    "not text": "\xff" * 1000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_they_are_refused_at_once(name: str) -> None:
    body = BOMBS[name].encode("latin-1")
    assert len(body) <= LIMIT
    spent = []
    for _ in range(7):  # the best of a few: it is our work that is measured, not the machine's other load
        begun = time.process_time()
        with pytest.raises((Malformed, InvalidValue)):
            jsonrpc.parse_call(body)
        spent.append(time.process_time() - begun)
    assert min(spent) < 0.05


@pytest.mark.parametrize("name", BOMBS)
def test_as_the_answer_of_another_host(name: str) -> None:
    """Its values may be anything that is short; but it is an object, or refused in one way."""
    try:
        assert isinstance(uris_wire.decode(BOMBS[name].encode("latin-1")), dict)
    except uris_wire.Malformed:
        return
    assert name in ("width", "surrogates")
