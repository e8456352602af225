"""XML-RPC texts: what is accepted, what is refused, what goes out byte for byte."""

# ruff: noqa: E501  (bodies as they are on the wire)

from __future__ import annotations

import time
import xmlrpc.client
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xapi_migrate.errors import InvalidValue
from xapi_migrate.xenapi import jsonrpc, wire
from xapi_migrate.xenapi.wire import Malformed, PlainInt


def call(value: str) -> bytes:
    return f"<?xml version='1.0'?><methodCall><methodName>m</methodName><params><param>{value}</param></params></methodCall>".encode()


def parsed(value: str) -> Any:
    method, (only,) = wire.parse_call(call(value))
    assert method == "m"
    return only


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<value>a &lt; b</value>", "a < b"),
        ("<value/>", ""),
        ("<value><string></string></value>", ""),
        ("<value><string> x </string></value>", " x "),
        ("<value><int>-5</int></value>", -5),
        ("<value><i4> 5 </i4></value>", 5),
        ("<value><i8>9223372036854775807</i8></value>", 2**63 - 1),
        ("<value>12</value>", "12"),
        ("<value><boolean>1</boolean></value>", True),
        ("<value><double>0.5</double></value>", 0.5),
        ("<value><nil/></value>", None),
        ("<value><dateTime.iso8601>20260821T02:00:23Z</dateTime.iso8601></value>", datetime(2026, 8, 21, 2, 0, 23, tzinfo=UTC)),
        ("<value><array><data/></array></value>", []),
        ("<value>\n<array>\n<data>\n<value>a</value>\n</data>\n</array>\n</value>", ["a"]),
        ("<value><struct><member><name>k</name><value>v</value></member></struct></value>", {"k": "v"}),
        ("<value><!-- no --><string>a<!-- no -->b</string></value>", "ab"),
        ("<value><![CDATA[<!DOCTYPE a>]]></value>", "<!DOCTYPE a>"),
    ],
)  # fmt: skip
def test_values_come_in(text: str, value: object) -> None:
    assert parsed(text) == value and type(parsed(text)) is type(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"nonsense",
        b"<methodCall>",
        b"<methodResponse/>",
        b"<methodCall><methodName/></methodCall>",
        b"<methodCall><methodName>m</methodName><other/></methodCall>",
        call("<value><int>1</int><int>2</int></value>"),
        call("<value><what>1</what></value>"),
        call("<value>&undefined;</value>"),
        call("<value><array><value>1</value></array></value>"),
        call("<value><struct><member><value>v</value></member></struct></value>"),
        call("<value><int>1<b/></int></value>"),
    ],
)  # fmt: skip
def test_what_is_no_call_is_refused(body: bytes) -> None:
    with pytest.raises((Malformed, InvalidValue)):
        wire.parse_call(body)


@pytest.mark.parametrize(
    "text",
    [
        b"<value>\xed\xa0\x80</value>",
        b"<value>\xff</value>",
        b"<value>\x01</value>",
        b"<value>&#xD800;</value>",
        b"<value>&#0;</value>",
        b"<value>&#x1f;</value>",
        b"<value>\xef\xbf\xbf</value>",
        b"<value><int>abc</int></value>",
        b"<value><int>" + b"9" * 10_000 + b"</int></value>",
        b"<value><boolean>2</boolean></value>",
        b"<value><double>x</double></value>",
        b"<value><int>1_000</int></value>",
        "<value><int>\u0663</int></value>".encode(),
        b"<value><dateTime.iso8601>yesterday</dateTime.iso8601></value>",
        b"<value><dateTime.iso8601>0001-01-01T00:00:00+23:59</dateTime.iso8601></value>",
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_invalid(text: bytes) -> None:
    with pytest.raises(InvalidValue):
        wire.parse_call(call("@").replace(b"@", text))


BOMBS = {
    "billion laughs": "<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a0 'lol'>"
    + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
    + "]><methodCall><methodName>x</methodName><params><param><value>&a9;</value></param></params></methodCall>",
    "quadratic": f"<!DOCTYPE l [<!ENTITY a '{'x' * 100_000}'>]><methodCall><methodName>{'&a;' * 20_000}</methodName></methodCall>",
    "external": "<!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/hostname'>]><methodCall><methodName>&a;</methodName></methodCall>",
    "external DTD": "<!DOCTYPE l SYSTEM 'http://127.0.0.1:1/x'><methodCall><methodName>a</methodName></methodCall>",
    "hidden DTD": "<!-- <methodCall> --><!DOCTYPE l [<!ENTITY a 'x'>]><methodCall><methodName>&a;</methodName></methodCall>",
    "depth": "<methodCall><methodName>x</methodName><params><param>" + "<value><array><data>" * 7_000,
    "closed depth": "<methodCall><methodName>x</methodName><params><param>"
    + "<value><array><data>" * 80 + "</data></array></value>" * 80 + "</param></params></methodCall>",
    "width": "<methodCall><methodName>x</methodName><params>" + "<param><value/></param>" * 13_000 + "</params></methodCall>",
    "wide array": "<methodCall><methodName>x</methodName><params><param><value><array><data>" + "<value/>" * 30_000
    + "</data></array></value></param></params></methodCall>",
    "attributes": "<methodCall " + " ".join(f"a{i}='1'" for i in range(20_000)) + "><methodName>x</methodName><y/></methodCall>",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name: str) -> None:
    body = BOMBS[name].encode()
    assert len(body) <= 300 << 10
    spent = []
    for _ in range(7):  # the best of a few: a busy machine's caches are not what is measured
        begun = time.process_time()
        with pytest.raises(Malformed):
            wire.parse_call(body)
        spent.append(time.process_time() - begun)
    # what such a body could cost is seconds
    assert min(spent) < 0.05


def test_answers_are_compact() -> None:
    head = '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name><value>'
    assert wire.success("").decode() == (
        head + "Success</value></member><member><name>Value</name><value></value></member></struct></value>"
        "</param></params></methodResponse>"
    )
    assert wire.failure(["HANDLE_INVALID", "VM", "a<"]).decode() == (
        head + "Failure</value></member><member><name>ErrorDescription</name><value><array><data>"
        "<value>HANDLE_INVALID</value><value>VM</value><value>a&lt;</value></data></array></value></member></struct>"
        "</value></param></params></methodResponse>"
    )
    assert wire.bare(["a"]).decode() == (
        '<?xml version="1.0"?><methodResponse><params><param><value><array><data><value>a</value></data></array></value>'
        "</param></params></methodResponse>"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**40, "<value>1099511627776</value>"),
        (PlainInt(3), "<value><i4>3</i4></value>"),
        (True, "<value><boolean>1</boolean></value>"),
        (0.0, "<value><double>0</double></value>"),
        (0.1, "<value><double>0.1</double></value>"),
        (None, "<value></value>"),
        ('a"\x07\ud800', "<value>a&quot;</value>"),
        (datetime(2026, 8, 21, 2, 0, 23, tzinfo=UTC), "<value><dateTime.iso8601>20260821T02:00:23Z</dateTime.iso8601></value>"),
        ({1: []}, "<value><struct><member><name>1</name><value><array><data></data></array></value></member></struct></value>"),
    ],
)  # fmt: skip
def test_values_go_out(value: object, text: str) -> None:
    assert wire.value(value) == text


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"))
VALUES = st.recursive(
    TEXT | st.booleans() | st.integers(-(2**31), 2**31 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_a_client_library_writes_is_read(value: Any) -> None:
    body = xmlrpc.client.dumps((value,), "VM.test", allow_none=True).encode()
    assert wire.parse_call(body) == ("VM.test", [value])


@given(st.recursive(TEXT | st.booleans(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner)))
def test_what_goes_out_a_client_library_reads(value: Any) -> None:
    (answer,), _ = xmlrpc.client.loads(wire.success(value))
    assert answer == {"Status": "Success", "Value": value}


@given(st.binary(max_size=300))
def test_any_bytes_are_a_call_or_refused(body: bytes) -> None:
    for read in (wire.parse_call, jsonrpc.parse_call):
        try:
            read(body)
        except (Malformed, InvalidValue):
            pass
