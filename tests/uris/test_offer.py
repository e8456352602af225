"""Capabilities and URIs as text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xapi_migrate.errors import UriInvalid
from xapi_migrate.uris.capability import Capability, find, opens
from xapi_migrate.uris.offer import Listener, build, listeners, parse
from xapi_migrate.uris.socket_options import plain_address

CAPABILITY = "Abc-_" + "x" * 38
PRINT = "ab" * 32


def test_a_capability_is_43_characters_that_nobody_sees():
    one, other = Capability.new(), Capability.new()
    assert len(one.text) == 43 and one != other
    assert one.text not in repr(one) and one.text not in str(one)
    assert len(one.digest) == 32 and one.text.encode() not in one.digest


@pytest.mark.parametrize("text", ["", "x" * 42, "x" * 44, "x" * 42 + "=", "x" * 42 + "\n", "x" * 42 + "é"])
def test_what_is_no_capability(text):
    with pytest.raises(ValueError) as caught:
        Capability(text)
    assert text[:42] not in str(caught.value) or not text


def test_only_the_capability_opens():
    one, other = Capability.new(), Capability.new()
    assert opens(one.text, one.digest)
    assert not opens(other.text, one.digest)
    assert find(one.text, [other.digest, one.digest]) == one.digest
    assert find("\udc00", [other.digest, one.digest]) is None


def test_the_list_is_in_the_order_of_the_schemes_and_every_uri_reads_back():
    capability = Capability.new()
    listeners = [
        Listener("http", "10.0.0.1", 8080),
        Listener("https", "10.0.0.1", 8443),
        Listener("http", "fd00::1", 8080),
        Listener("https", "host-1.example.org", 443),
    ]
    uris = build(capability, listeners, ["https", "http"], PRINT)
    assert uris == [
        f"https://10.0.0.1:8443/migrate/{capability.text}#sha256={PRINT}",
        f"https://host-1.example.org:443/migrate/{capability.text}#sha256={PRINT}",
        f"http://10.0.0.1:8080/migrate/{capability.text}",
        f"http://[fd00::1]:8080/migrate/{capability.text}",
    ]
    for uri in uris:
        parsed = parse(uri)
        assert parsed.text() == uri
        assert parsed.capability == capability
        assert capability.text not in repr(parsed) + str(parsed) + f"{parsed}"
    assert build(capability, listeners, ["https"])[0].endswith(capability.text)


@pytest.mark.parametrize(
    "uri, says",
    [
        (f"ftp://h:1/migrate/{CAPABILITY}", "must be http"),
        (f"HTTP://h:1/migrate/{CAPABILITY}", "must be http"),
        (f"http://h/migrate/{CAPABILITY}", "must be http"),
        (f"http://u:p@h:1/migrate/{CAPABILITY}", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}?a=b", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}/", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}/metadata", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}x", "must be http"),
        (f"http://h:1//migrate/{CAPABILITY}", "must be http"),
        (f"http://h:1/migrate/../{CAPABILITY}", "must be http"),
        (f"http://h:1/migrate/%41{CAPABILITY[1:]}", "must be http"),
        (f"http://h:0/migrate/{CAPABILITY}", "must be http"),
        (f"http://h:080/migrate/{CAPABILITY}", "must be http"),
        (f" http://h:1/migrate/{CAPABILITY}", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}\n", "must be http"),
        (f"http://h:1/migrate/{CAPABILITY}\r\nX: y", "must be http"),
        (f"http://h:65536/migrate/{CAPABILITY}", "65535"),
        (f"http://127.1:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://2130706433:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://1.2.3.999:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://-h:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://a..b:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://{'a' * 64}:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://[1.2.3.4]:80/migrate/{CAPABILITY}", "brackets"),
        (f"http://[::g]:80/migrate/{CAPABILITY}", "must be http"),
        (f"http://[::1::]:80/migrate/{CAPABILITY}", "neither a name nor"),
        (f"http://h:80/migrate/{CAPABILITY}#sha256={PRINT}", "only on https"),
        (f"https://h:80/migrate/{CAPABILITY}#sha256={PRINT[1:]}", "64 hexadecimal"),
        (f"https://h:80/migrate/{CAPABILITY}#md5={PRINT}", "64 hexadecimal"),
        (f"https://h:80/migrate/{CAPABILITY}#", "64 hexadecimal"),
        (f"https://h:80/migrate/{CAPABILITY}#sha256={PRINT}#", "must be http"),
        ("http://h:1/migrate/" + "x" * 100000, "must be http"),
        ("", "must be http"),
    ],
)
def test_what_is_no_migration_uri(uri, says):
    with pytest.raises(UriInvalid) as caught:
        parse(uri)
    assert says in str(caught.value)
    assert CAPABILITY[:20] not in str(caught.value) and CAPABILITY[:20] not in repr(caught.value)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=120))
@example("http://h:1/migrate/" + CAPABILITY)
@example("http://" + CAPABILITY + ":1/migrate/")
def test_nothing_but_a_uri_is_one(text):
    try:
        parsed = parse(text)
    except UriInvalid:
        return
    assert parsed.text().lower() == text.lower()


@given(st.text(alphabet="/:@?#[]%.;htps1migrae-", max_size=30), st.text(alphabet="/:@?#[]%.;\0 ", max_size=5))
def test_no_error_shows_the_capability(before, after):
    for uri in (f"{before}{CAPABILITY}{after}", f"http://h:1/migrate/{before}{CAPABILITY}{after}"):
        try:
            parse(uri)
        except UriInvalid as error:
            assert CAPABILITY not in str(error) + repr(error) + str(error.failure())


def test_what_is_offered_is_what_a_sender_can_reach():
    bound = [Listener("http", "127.0.0.1", 80), Listener("https", "0.0.0.0", 443), Listener("https", "::", 443)]
    assert listeners(bound, [], "host-1") == [Listener("http", "127.0.0.1", 80), Listener("https", "host-1", 443)]
    assert listeners(bound[:2], ["10.0.0.1", "fd00::1"], "host-1") == [
        Listener("http", "10.0.0.1", 80),
        Listener("http", "fd00::1", 80),
        Listener("https", "10.0.0.1", 443),
        Listener("https", "fd00::1", 443),
    ]


@pytest.mark.parametrize(
    "bound, said",
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_the_local_address_is_said_as_others_know_it(bound, said):
    assert plain_address(bound) == said
