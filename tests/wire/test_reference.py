"""How XenAPI is written on the wire and how its calls are dispatched, each rule on a raw socket.

| rule | test |
|---|---|
| paths: / /RPC2 /xmlrpc, /jsonrpc /json; what is under them; others | paths, other_paths |
| the session is the first parameter, but of log-in and system.* | the_session_comes_first |
| a body of 300 KiB at most | the_limit_of_a_body |
| the success envelope, byte for byte; 200, text/xml, allow-origin | the_success_envelope |
| the failure envelope; no <fault>, never another status | the_failure_envelope |
| system.listMethods is bare, names what may be called, needs no session | list_methods |
| system.isAlive:x gives back what it was given | is_alive |
| strings, integers, booleans, floats, dates, sets, maps, references, void | values_go_out |
| tagged and untagged, nil, white space | values_come_in |
| text that is no UTF-8 | text_that_is_none |
| any text for a reference | a_reference_to_nothing |
| JSON-RPC 1.0 and 2.0, success and failure, ids | json_1, json_2, json_ids, json_answers_belong_to_their_call |
| listMethods, dates, void, integers in JSON | values_in_json |
| Class.message, Class_message, Async., InternalAsync., case | names |
| parameters counted before the session is looked at; too few, too many | counting, too_many |
| parameters left out from the right | left_out |
| unknown calls: the session wins; none without a parameter | unknown_calls |
| no Async mode | no_background |
| a constructor takes one struct | constructors |
| errors: HANDLE_INVALID, UUID_INVALID, MAP_DUPLICATE_KEY, INVALID_VALUE, ... | errors |
| get_all_where and its language | where |

HTTP is in test_reference_http.py; log-in, tasks and events are in test_tasks_and_events.py.
"""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
import pytest_twisted

from tests.wire.raw import struct, xml
from tests.wire.talk import LOGIN, NOBODY, Talk, Wire
from tests.xenapi.live import PASSWORD, USER
from xapi_migrate.xenapi.calls import CallContext

# -- 1.1 the envelope ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/RPC2", "/RPC2/", "/xmlrpc", "/?session=1", "http://x/RPC2"])
@pytest_twisted.ensureDeferred
async def test_paths(wire: Wire, path: str) -> None:
    assert (await wire.talk(lambda talk: talk.ask(LOGIN, path))).value().startswith("<value>OpaqueRef:")


@pytest.mark.parametrize("path", ["/nowhere", "/rpc2", "/jsonrpcs", "//x", "/%2e%2e/etc/passwd", "/RPC2/more"])
@pytest_twisted.ensureDeferred
async def test_other_paths(wire: Wire, path: str) -> None:
    def work(talk: Talk) -> None:
        answer = talk.ask(LOGIN, path)
        assert (answer.status, answer.headers["content-type"]) == (404, "text/plain")
        assert talk.ask(LOGIN).status == 200, "the connection goes on"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_the_session_comes_first(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        assert talk.ask(LOGIN).value().startswith("<value>OpaqueRef:")
        assert talk.ask(xml("VM.get_all", talk.session)).value().startswith("<value><array>")
        assert talk.ask(xml("VM.get_all", NOBODY)).error() == ["SESSION_INVALID", NOBODY]
        assert talk.ask(xml("VM.get_all", "<nil/>")).error()[0] == "SESSION_INVALID"
        assert talk.ask(xml("VM.get_all", "<int>1</int>")).error()[0] == "SESSION_INVALID"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_the_limit_of_a_body(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        fits = LOGIN + " " * (300 * 1024 - len(LOGIN))
        assert talk.ask(fits).value()
        answer = talk.ask(fits + " ")
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert talk.conversation.ended()

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_the_success_envelope(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        answer = talk.ask(xml("session.get_uuid", talk.session, talk.session))
        assert answer.line == "HTTP/1.1 200 OK"
        assert answer.headers["content-type"] == "text/xml"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "transfer-encoding" not in answer.headers and "connection" not in answer.headers
        assert re.fullmatch(r"<value>[0-9a-f-]{36}</value>", answer.value())
        assert not answer.body.endswith(b"\n")

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_the_failure_envelope(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        answer = talk.call("VM.get_record", NOBODY)
        assert answer.error() == ["HANDLE_INVALID", "VM", NOBODY]
        assert "fault" not in answer.text and answer.headers["access-control-allow-origin"] == "*"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_list_methods(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        text = talk.ask(xml("system.listMethods")).text
        head = '<?xml version="1.0"?><methodResponse><params><param><value><array><data>'
        assert text.startswith(head) and text.endswith("</data></array></value></param></params></methodResponse>")
        names = re.findall("<value>([^<]+)</value>", text)
        assert names == sorted(set(names)) and not [name for name in names if name.startswith("Async")]
        assert {"VM.get_all_records", "task.get_all_records", "VM.receive", "event.from", "event.inject"} <= set(names)
        for name in names:  # each may be called: it wants parameters, or a session, but is never unknown
            assert talk.ask(xml(name)).error()[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_is_alive(wire: Wire) -> None:
    answer = await wire.talk(lambda talk: talk.ask(xml("system.isAlive:that", "a &lt; b")))
    assert answer.value() == "<value>a &lt; b</value>"


@pytest_twisted.ensureDeferred
async def test_values_go_out(wire: Wire) -> None:
    records = wire.live.records
    vm = records.create("VM", name_label="a<b>&\"'\x01\u2028ü", user_version=2**40, HVM_shadow_multiplier=0.1)
    vbd = records.create("VBD", VM=vm)
    records.update("VM", vm, other_config={"k": "v"})

    def work(talk: Talk) -> None:
        def get(field: str) -> str:
            return talk.call(f"VM.get_{field}", vm).value()

        assert get("name_label") == "<value>a&lt;b&gt;&amp;&quot;'\u2028ü</value>"
        assert get("name_description") == "<value></value>"
        assert get("user_version") == f"<value>{2**40}</value>"
        assert get("is_a_template") == "<value><boolean>0</boolean></value>"
        assert get("HVM_shadow_multiplier") == "<value><double>0.1</double></value>"
        assert get("snapshot_time") == "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"
        assert get("VBDs") == f"<value><array><data><value>{vbd}</value></data></array></value>"
        assert get("tags") == "<value><array><data></data></array></value>"
        assert get("other_config") == (
            "<value><struct><member><name>k</name><value>v</value></member></struct></value>"
        )
        assert get("xenstore_data") == "<value><struct></struct></value>"
        assert get("power_state") == "<value>Halted</value>"
        assert get("affinity") == "<value>OpaqueRef:NULL</value>"
        assert talk.call("VM.set_name_description", vm, "x").value() == "<value></value>"
        record = talk.call("VM.get_record", vm).value()
        assert "<string>" not in record and "<int>" not in record and "<i4>" not in record and "nil" not in record
        fields = {field.name for field in records.model.classes["VM"].fields.values()}
        assert fields <= set(re.findall("<name>([^<]+)</name>", record))

    await wire.talk(work)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("12", 12),
        ("<int>12</int>", 12),
        ("<i4>12</i4>", 12),
        ("<i8>12</i8>", 12),
        ("<string>-12</string>", -12),
        (" \n<int> 12 </int>\n ", 12),
    ],
)
@pytest_twisted.ensureDeferred
async def test_values_come_in(wire: Wire, given: str, kept: int) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        assert talk.call("VM.set_user_version", vm, given).value() == "<value></value>"
        assert talk.call("VM.set_name_label", vm, "<string> s </string>").value() == "<value></value>"
        assert talk.call("VM.set_name_description", vm, " &#252;<!-- --> &#x1F600; ").value() == "<value></value>"
        assert talk.call("VM.set_suspend_SR", vm, "").value() == "<value></value>"

    await wire.talk(work)
    record = wire.live.records.get("VM", vm)
    assert record["user_version"] == kept and record["name_label"] == " s "
    assert record["name_description"] == " ü \U0001f600 " and record["suspend_SR"] == "OpaqueRef:NULL"


@pytest_twisted.ensureDeferred
async def test_text_that_is_none(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        body = xml("VM.get_by_name_label", talk.session, "@").encode().replace(b"@", b"\xff\xfe")
        assert talk.ask(body).error()[:2] == ["INVALID_VALUE", "Invalid UTF-8 string in parameter"]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_a_reference_to_nothing(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        for ref in ("OpaqueRef:00000000-0000-0000-0000-000000000000", "DummyRef:|1|x", "anything", "OpaqueRef:NULL"):
            assert talk.call("VM.get_record", ref).error() == ["HANDLE_INVALID", "VM", ref]
            assert talk.call("VM.get_name_label", ref).error() == ["HANDLE_INVALID", "VM", ref]

    await wire.talk(work)


# -- 1.2 JSON-RPC ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_json_1(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        good = talk.json("VM.get_by_name_label", talk.session, "nobody has that")
        assert good == {"result": [], "error": None, "id": 7}
        bad = talk.json("VM.get_record", talk.session, NOBODY)
        assert bad == {"result": None, "error": ["HANDLE_INVALID", "VM", NOBODY], "id": 7}
        assert talk.json("VM.get_record", talk.session, NOBODY, path="/json") == bad

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_json_2(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        good = talk.json("VM.get_by_name_label", talk.session, "nobody has that", jsonrpc="2.0")
        assert good == {"jsonrpc": "2.0", "result": [], "id": 7}
        bad = talk.json("VM.get_record", talk.session, NOBODY, jsonrpc="2.0")
        error = {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", NOBODY]}
        assert bad == {"jsonrpc": "2.0", "error": error, "id": 7}
        assert talk.json("VM.get_all", "no", jsonrpc="2.0")["error"]["message"] == "SESSION_INVALID"
        assert talk.json("VM.get_all", None, jsonrpc="2.0")["error"]["message"] == "SESSION_INVALID"

    await wire.talk(work)


@pytest.mark.parametrize("given", [0, 1, "a-uuid", None, 2**53])
@pytest_twisted.ensureDeferred
async def test_json_ids(wire: Wire, given: object) -> None:
    def work(talk: Talk) -> None:
        for version in ({}, {"jsonrpc": "2.0"}):
            answer = talk.json("VM.get_by_name_label", talk.session, "x", id=given, **version)
            assert answer["id"] == given and type(answer["id"]) is type(given)

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_json_answers_belong_to_their_call(wire: Wire) -> None:
    """Also where its text is none; and what JSON is not is neither taken nor answered."""

    def work(talk: Talk) -> None:
        for text in ("\ud800", "a\0b"):
            one = talk.json("VM.get_by_name_label", talk.session, text, id="me")
            assert one["id"] == "me" and one["error"][:2] == ["INVALID_VALUE", "Invalid UTF-8 string in parameter"]
            two = talk.json("VM.get_by_name_label", talk.session, text, id="me", jsonrpc="2.0")
            assert (two["id"], two["error"]["message"]) == ("me", "INVALID_VALUE")
        assert set(talk.json("VM.get_all", talk.session, jsonrpc="1.0")) == {"result", "error", "id"}
        for name in ("NaN", "1e999", '{"a": 1}', "[1]"):
            body = f'{{"method": "VM.get_all", "params": ["{talk.session}"], "id": {name}}}'
            assert talk.ask(body, "/jsonrpc").status == 400
        body = f'{{"method": "task.set_progress", "params": ["{talk.session}", "x", Infinity], "id": 1}}'
        assert talk.ask(body, "/jsonrpc").status == 400

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_values_in_json(wire: Wire) -> None:
    vm = wire.live.records.create("VM", name_label="ü<", user_version=2**40)

    def work(talk: Talk) -> None:
        record = talk.json("VM.get_record", talk.session, vm, jsonrpc="2.0")["result"]
        assert record["user_version"] == 2**40 and record["is_a_template"] is False and record["tags"] == []
        assert record["snapshot_time"] == "19700101T00:00:00Z" and record["name_label"] == "ü<"
        assert type(record["HVM_shadow_multiplier"]) is float and record["affinity"] == "OpaqueRef:NULL"
        assert talk.json("VM.set_user_version", talk.session, vm, 5, jsonrpc="2.0")["result"] == ""
        assert talk.json("VM.set_user_version", talk.session, vm, "6")["result"] == ""
        assert talk.json("VM.get_user_version", talk.session, vm)["result"] == 6
        assert "VM.get_all" in talk.json("system.listMethods", jsonrpc="2.0")["result"]
        answer = talk.ask(b"[1", "/jsonrpc")
        assert (answer.status, answer.headers["content-type"]) == (400, "text/plain")

    await wire.talk(work)


# -- 1.3 dispatch --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_names(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        assert talk.call("VM_get_power_state", vm).value() == "<value>Halted</value>"
        assert talk.call("VM_metrics_get_all").value().startswith("<value><array>")
        for name in ("vm.get_all", "VM.GET_ALL", "Vm.get_all", "Async.VM_migrate", "InternalAsync.VM.migrate", "VM."):
            assert talk.call(name).error() == ["MESSAGE_METHOD_UNKNOWN", name]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_counting(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        def mismatch(name: str, expected: int, received: int) -> list[str]:
            return ["MESSAGE_PARAMETER_COUNT_MISMATCH", name, str(expected), str(received)]

        assert talk.call("VM.get_record").error() == mismatch("VM.get_record", 1, 0)
        assert talk.ask(xml("VM.get_record", NOBODY)).error() == mismatch("VM.get_record", 1, 0)
        assert talk.ask(xml("VM.get_record")).error()[:3] == mismatch("VM.get_record", 1, 0)[:3]
        assert talk.call("VM.get_record", "a", "b").error() == mismatch("VM.get_record", 1, 2)
        assert talk.call("Async.VM.migrate_send", "a").error() == mismatch("VM.migrate_send", 6, 1)
        assert talk.ask(xml("session.login_with_password", "a")).error() == mismatch(
            "session.login_with_password", 2, 1
        )

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_too_many(wire: Wire) -> None:
    """More than all are accepted where some have defaults, and only there."""

    def work(talk: Talk) -> None:
        four = (USER, PASSWORD, "1.0", "me")
        assert talk.ask(xml("session.login_with_password", *four, "more", "still more")).value()
        assert talk.call("VM.get_all", "more").error()[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_left_out(wire: Wire) -> None:
    sr = wire.live.records.create("SR")

    def work(talk: Talk) -> None:
        assert "/migrate/" in talk.call("VM.receive", sr).value()
        assert "/migrate/" in talk.call("VM.receive", sr, struct(a="b")).value()

    await wire.talk(work)
    assert [asked[2] for asked in wire.live.engine.asked if asked[1] == sr] == [{}, {"a": "b"}]


@pytest_twisted.ensureDeferred
async def test_unknown_calls(wire: Wire) -> None:
    def work(talk: Talk) -> None:
        assert talk.ask(xml("foo.bar", NOBODY)).error() == ["SESSION_INVALID", NOBODY]
        assert talk.ask(xml("foo.bar", talk.session)).error() == ["MESSAGE_METHOD_UNKNOWN", "foo.bar"]
        assert talk.ask(xml("foo.bar")).error() == ["MESSAGE_METHOD_UNKNOWN", "foo.bar"]
        # known to XenAPI, not done here; what is named is looked up first
        assert talk.call("VM.checkpoint", NOBODY, "x").error() == ["HANDLE_INVALID", "VM", NOBODY]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_no_background(wire: Wire) -> None:
    vm = wire.live.records.create("VM")
    answer = await wire.talk(lambda talk: talk.call("Async.VM.get_record", vm))
    assert answer.error() == ["Fault", "No async mode for this operation (rpc: VM.get_record)"]


class Constructor:
    """VM.create, that makes nothing."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def VM_create(self, call: CallContext, args: dict[str, Any]) -> str:
        self.given.append(args)
        return "OpaqueRef:made"


@pytest_twisted.ensureDeferred
async def test_constructors(wire: Wire) -> None:
    constructor = Constructor()
    wire.live.server.dispatcher.register(constructor)

    def work(talk: Talk) -> None:
        given = struct(name_label="x", user_version="5", power_state="Running", no_such_field="y")
        assert talk.call("VM.create", given).value() == "<value>OpaqueRef:made</value>"
        assert talk.call("VM.create", given, given).error()[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH"
        assert talk.call("VM.create", "x").error()[0] == "FIELD_TYPE_ERROR"

    await wire.talk(work)
    [fields] = constructor.given
    assert fields["name_label"] == "x" and fields["user_version"] == 5 and "no_such_field" not in fields


@pytest_twisted.ensureDeferred
async def test_errors(wire: Wire) -> None:
    vm = wire.live.records.create("VM", other_config={"k": "v"})
    uuid = wire.live.records.get("VM", vm)["uuid"]

    def work(talk: Talk) -> None:
        def error(method: str, *values: str) -> list[str]:
            return talk.call(method, *values).error()

        assert error("SR.get_name_label", vm) == ["HANDLE_INVALID", "SR", vm]
        assert error("network.get_by_uuid", "x") == ["UUID_INVALID", "network", "x"]
        duplicate = error("VM.add_to_other_config", vm, "k", "w")
        assert duplicate == ["MAP_DUPLICATE_KEY", "VM", "other_config", uuid, "k"]
        assert error("VM.set_actions_after_shutdown", vm, "explode")[0] == "INVALID_VALUE"
        assert error("VM.set_user_version", vm, "many")[0] == "FIELD_TYPE_ERROR"
        assert error("VM.set_is_a_template", vm, "<string>yes</string>")[0] == "FIELD_TYPE_ERROR"
        task = re.findall("OpaqueRef:[0-9a-f-]+", talk.call("task.create", "x", "").text)[0]
        for endless in ("inf", "-inf", "nan", "1e999"):  # what JSON cannot say
            assert error("task.set_progress", task, f"<double>{endless}</double>") == ["FIELD_TYPE_ERROR", "value"]
        assert error("VM.get_all_where", "field 1")[0] == "INVALID_VALUE"
        broken = error("VM.migrate", vm, "<array><data/></array>", "<struct/>", struct(**{"break": "1"}))
        assert broken[0] == "INTERNAL_ERROR" and "secret" not in broken[1]
        assert talk.call("VM.remove_from_other_config", vm, "never there").value() == "<value></value>"

    await wire.talk(work)


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("true", "ab"),
        ("false", ""),
        ('field "name__label"="where a"', "a"),
        ('(field "name__label" = "where a") or (field "name__label" = "where b")', "ab"),
        ('not (field "name__label"="where a") and field "user_version"="5"', "b"),
        ('field "is_a_template"="true"', "a"),
        ('field "VCPUs__max"="3"', "b"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_where(wire: Wire, expression: str, found: str) -> None:
    records = wire.live.records
    for ref in records.refs("VM"):
        records.destroy("VM", ref)
    a = records.create("VM", name_label="where a", is_a_template=True)
    b = records.create("VM", name_label="where b", user_version=5, VCPUs_max=3)
    wanted = [{"a": a, "b": b}[letter] for letter in found]

    def work(talk: Talk) -> None:
        text = html.escape(expression)
        refs = re.findall("<value>([^<]+)</value>", talk.call("VM.get_all_where", text).value())
        assert refs == wanted
        names = re.findall("<name>(OpaqueRef:[^<]+)</name>", talk.call("VM.get_all_records_where", text).value())
        assert names == wanted

    await wire.talk(work)
