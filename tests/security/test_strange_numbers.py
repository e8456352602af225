"""Numbers and moments that no client means: each is a value, or refused in the one way that clients know."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xapi_migrate.errors import FieldTypeError, InvalidValue
from xapi_migrate.xenapi import jsonrpc, wire
from xapi_migrate.xenapi.arguments import Arguments
from xapi_migrate.xenapi.datamodel import shipped
from xapi_migrate.xenapi.types import parse_type

ARGUMENTS = Arguments(shipped(), lambda cls, ref: True)
LIKE_NUMBERS = st.text("+-0123456789.eE_xTZ:W \u0663\u00b2\ud800", max_size=30)
RAW = LIKE_NUMBERS | st.text(max_size=30) | st.integers() | st.floats() | st.none() | st.booleans()


@given(st.sampled_from(["int", "float", "datetime", "(int -> int) map", "int set"]), RAW)
@example("int", "--5")
@example("datetime", "0001-01-01T00:00:00+23:59")
@example("int", "9" * 5000)
@example("float", 10**5000)
def test_it_is_a_value_or_refused(kind: str, raw: Any) -> None:
    type_ = parse_type(kind)
    given_ = {raw: raw} if kind.endswith("map") else [raw] if kind.endswith("set") else raw
    with suppress(FieldTypeError, InvalidValue):
        wire.value(ARGUMENTS.value(type_, given_, "it"))


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_without_end_is_not_taken(number: str) -> None:
    """An answer that held it would be no JSON."""
    assert math.isinf(json.loads(number))
    with pytest.raises(wire.Malformed):
        jsonrpc.parse_call(b'{"method": "m", "params": [{"a": [%s]}]}' % number.encode())
