"""Log-in, tasks and events as they are written on the wire.

| rule | test |
|---|---|
| log-in with two to four arguments; who fails is told both | log_in |
| a task of an Async call, its result as XML in text | tasks |
| one that fails has error_info; one that is cancelled has none; both have no result | failed, cancelled |
| a client's own task; whose status is for others to say is left alone | own_tasks |
| event.from: token, events, valid_ref_counts, errors | events |
| what is gone has no snapshot; one object of a class; letter case; nothing within the time | gone |
| event.from in JSON: numbers are numbers | events_in_json |
| a log-out wakes those who wait | log_out |
| event.register, next and unregister; get_current_id is text | the_old_events |
| sets and maps are changed one by one | one_by_one |
| get_all_records: records by reference | records |
| calls of migrations with as many arguments as clients send | arguments_of_migrations |
"""

from __future__ import annotations

import re

import pytest
import pytest_twisted

from tests.wire.raw import Conversation, post, struct, xml
from tests.wire.talk import LOGIN, NOBODY, Talk, Wire
from tests.xenapi.live import PASSWORD, USER

EMPTY = "<value><array><data></data></array></value>"


@pytest.mark.parametrize("more", [(), ("1.10",), ("2.20", "an originator")])
@pytest_twisted.ensureDeferred
async def test_log_in(wire: Wire, more: tuple[str, ...]) -> None:
    def work(talk: Talk) -> str:
        session = re.fullmatch(
            r"<value>(OpaqueRef:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})</value>",
            talk.ask(xml("session.login_with_password", USER, PASSWORD, *more)).value(),
        )
        assert session
        assert talk.ask(xml("session.logout", session[1])).value() == "<value></value>"
        assert talk.ask(xml("session.logout", session[1])).error() == ["SESSION_INVALID", session[1]]
        refused = talk.ask(xml("session.login_with_password", USER, "wrong", *more)).error()
        assert refused == ["SESSION_AUTHENTICATION_FAILED", USER, "Authentication failure"]
        background = talk.ask(xml("Async.session.login_with_password", USER, PASSWORD)).error()
        assert background == ["Fault", "No async mode for this operation (rpc: session.login_with_password)"]
        return session[1]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_tasks(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def field(talk: Talk, name: str, task: str) -> str:
        return talk.call(f"task.get_{name}", task).value()

    def begin(talk: Talk) -> str:
        task = talk.call("Async.VM.clean_shutdown", vm).value().removeprefix("<value>").removesuffix("</value>")
        assert task.startswith("OpaqueRef:")
        assert field(talk, "name_label", task) == "<value>Async.VM.clean_shutdown</value>"
        assert field(talk, "status", task) == "<value>pending</value>"
        assert field(talk, "type", task) == "<value>&lt;none/&gt;</value>"
        assert field(talk, "progress", task) == "<value><double>0</double></value>"
        assert field(talk, "finished", task) == (
            "<value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"
        )
        assert field(talk, "result", task) == "<value></value>"
        assert field(talk, "error_info", task) == "<value><array><data></data></array></value>"
        assert field(talk, "subtask_of", task) == "<value>OpaqueRef:NULL</value>"
        assert field(talk, "backtrace", task) == "<value>()</value>"
        return task

    def over(talk: Talk, task: str) -> None:
        assert field(talk, "status", task) == "<value>success</value>"
        assert field(talk, "progress", task) == "<value><double>1</double></value>"
        # XML inside of text, escaped once
        assert field(talk, "result", task) == "<value>&lt;value&gt;&lt;/value&gt;</value>"
        assert field(talk, "allowed_operations", task) == "<value><array><data></data></array></value>"
        assert talk.call("task.destroy", task).value() == "<value></value>"
        assert talk.call("task.get_record", task).error() == ["HANDLE_INVALID", "task", task]

    task = await wire.talk(begin)
    wire.live.more.gate.callback(None)
    await wire.talk(lambda talk: over(talk, task))


@pytest_twisted.ensureDeferred
async def test_events(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def classes(*names: str) -> str:
        return f"<array><data>{''.join(f'<value>{name}</value>' for name in names)}</data></array>"

    def work(talk: Talk) -> None:
        def token(text: str) -> str:
            found = re.search("<name>token</name><value>([^<]*)</value>", text)
            assert found and re.fullmatch(r"\d{20},\d{20}", found[1])
            return found[1]

        first = talk.call("event.from", classes(f"vm/{vm}"), "", "<double>0</double>").value()
        assert first.count("<name>snapshot</name>") == 1
        for name, value in (("class", "vm"), ("operation", "add"), ("ref", vm), ("timestamp", "0.0")):
            assert f"<member><name>{name}</name><value>{value}</value></member>" in first
        assert re.search(r"<name>id</name><value>\d+</value>", first)
        assert re.search(r"<name>vm</name><value><i4>\d+</i4></value>", first)
        same = talk.call("event.from", classes("VM"), token(first), "<int>0</int>").value()
        assert "<name>events</name><value><array><data></data></array></value>" in same
        assert token(same) >= token(first)
        assert talk.call("VM.set_name_label", vm, "now").value()
        assert "<value>mod</value>" in talk.call("event.from", classes("*"), token(first), "<double>9</double>").text
        injected = talk.call("event.inject", "VM", vm).value()
        assert re.fullmatch(r"<value>\d{20},\d{20}</value>", injected)
        assert talk.call("event.from", classes("vm"), "x", "<double>0</double>").error() == [
            "EVENT_FROM_TOKEN_PARSE_FAILURE", "x",
        ]  # fmt: skip
        assert talk.call("event.from", classes("vm/"), "", "<double>0</double>").error() == [
            "EVENT_SUBSCRIPTION_PARSE_FAILURE", "vm/",
        ]  # fmt: skip
        assert talk.call("event.next").error() == ["SESSION_NOT_REGISTERED", talk.session]

    await wire.talk(work)


def array(*items: str) -> str:
    return f"<array><data>{''.join(f'<value>{item}</value>' for item in items)}</data></array>"


def inside(value: str) -> str:
    return value.removeprefix("<value>").removesuffix("</value>")


def ended(talk: Talk, task: str) -> dict[str, str]:
    """What a task says that is over."""
    names = ("status", "progress", "result", "error_info", "allowed_operations", "finished")
    said = {name: talk.call(f"task.get_{name}", task).value() for name in names}
    assert said.pop("progress") == "<value><double>1</double></value>"
    assert said.pop("allowed_operations") == EMPTY
    assert "1970" not in said.pop("finished")
    return said


@pytest_twisted.ensureDeferred
async def test_failed(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        arguments = (vm, "<array><data/></array>", "<struct/>", struct(refuse="1"))
        refused = talk.call("VM.migrate", *arguments).error()
        assert refused == ["VDI_NOT_IN_MAP", "OpaqueRef:vdi"]
        task = inside(talk.call("Async.VM.migrate", *arguments).value())
        assert ended(talk, task) == {
            "status": "<value>failure</value>", "result": "<value></value>",
            "error_info": f"<value>{array(*refused)}</value>",
        }  # fmt: skip

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_cancelled(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        task = inside(talk.call("Async.VM.migrate", vm, "<array><data/></array>", "<struct/>", "<struct/>").value())
        assert talk.call("task.get_progress", task).value() == "<value><double>0.25</double></value>"
        assert talk.call("task.get_allowed_operations", task).value() == f"<value>{array('cancel')}</value>"
        assert talk.call("task.cancel", task).value() == "<value></value>"
        assert ended(talk, task) == {
            "status": "<value>cancelled</value>", "result": "<value></value>", "error_info": EMPTY,
        }  # fmt: skip

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_own_tasks(wire: Wire) -> None:
    others = wire.live.server.tasks.begin("VM.start").ref

    def work(talk: Talk) -> None:
        task = inside(talk.call("task.create", "a label", "a description").value())
        assert talk.call("task.get_name_label", task).value() == "<value>a label</value>"
        assert talk.call("task.get_status", task).value() == "<value>pending</value>"
        for call, value in (
            ("progress", "<double>0.5</double>"), ("error_info", array("A", "b")), ("result", "r"),
            ("status", "success"),
        ):  # fmt: skip
            assert talk.call(f"task.set_{call}", task, value).value() == "<value></value>"
        assert talk.call("task.get_progress", task).value() == "<value><double>0.5</double></value>"
        assert talk.call("task.get_error_info", task).value() == f"<value>{array('A', 'b')}</value>"
        assert talk.call("task.get_status", task).value() == "<value>success</value>"
        assert talk.call("task.set_status", task, "done").error() == ["INVALID_VALUE", "value", "done"]
        assert talk.call("task.destroy", task).value() == "<value></value>"
        for call in ("destroy", "cancel", "get_status"):
            assert talk.call(f"task.{call}", task).error() == ["HANDLE_INVALID", "task", task]
        assert talk.call("task.set_status", others, "success").value() == "<value></value>"
        assert talk.call("task.get_status", others).value() == "<value>pending</value>"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_gone(wire: Wire) -> None:
    records = wire.live.records
    network, other = records.create("network"), records.create("network")

    def token(talk: Talk) -> str:
        text = talk.call("event.from", array("NetWork"), "", "<double>0</double>").value()
        return re.findall("<name>token</name><value>([^<]*)</value>", text)[0]

    seen = await wire.talk(token)
    records.destroy("network", network)
    records.update("network", other, name_label="now")

    def work(talk: Talk) -> None:
        def events(subscription: str) -> str:
            text = talk.call("event.from", array(subscription), seen, "<double>0.1</double>").value()
            return re.findall("<name>events</name><value>(.*)</value></member><member><name>valid_ref", text)[0]

        both = events("network")
        assert both.count("<name>snapshot</name>") == 1 and both.count("<name>class</name>") == 2
        gone = events(f"network/{network}")
        assert "<value>del</value>" in gone and "snapshot" not in gone and other not in gone
        assert events("crashdump") == "<array><data></data></array>"
        assert talk.call("event.from", array("network"), seen, "soon").error() == ["FIELD_TYPE_ERROR", "timeout"]
        assert talk.call("event.from", "network", seen, "<double>0</double>").error()[0] == "FIELD_TYPE_ERROR"

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_events_in_json(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        answer = talk.json("event.from", talk.session, [f"vm/{vm}", "task"], "", 0, jsonrpc="2.0")["result"]
        assert set(answer) == {"events", "valid_ref_counts", "token"}
        assert all(type(count) is int for count in answer["valid_ref_counts"].values())
        assert {"vm", "task"} <= set(answer["valid_ref_counts"])
        (event,) = [event for event in answer["events"] if event["ref"] == vm]
        assert event["id"].isdecimal() and event["timestamp"] == "0.0" and event["snapshot"]["user_version"] == 0
        tasks = [event["snapshot"] for event in answer["events"] if event["class"] == "task"]
        assert all(type(task["progress"]) is float for task in tasks)
        again = talk.json("event.from", talk.session, ["vm"], answer["token"], 0.1)["result"]
        assert again["events"] == [] and again["token"] >= answer["token"]

    await wire.talk(work)


@pytest.mark.parametrize("wait", ["event.from", "event.next"])
@pytest_twisted.ensureDeferred
async def test_log_out(wire: Wire, wait: str) -> None:
    def work(talk: Talk) -> None:
        session = inside(talk.ask(LOGIN).value())
        assert talk.ask(xml("event.register", session, array("secret"))).value() == "<value></value>"
        arguments = () if wait == "event.next" else (array("secret"), "", "<double>50</double>")
        if arguments:
            first = talk.ask(xml(wait, session, *arguments[:2], "<double>0</double>")).value()
            token = re.findall("<name>token</name><value>([^<]*)</value>", first)[0]
            arguments = (arguments[0], token, arguments[2])
        with Conversation(("127.0.0.1", talk.port)) as waiting:
            waiting.say(post(xml(wait, session, *arguments)))
            assert talk.ask(xml("session.logout", session)).value() == "<value></value>"
            assert waiting.answer().error() == ["SESSION_INVALID", session]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_the_old_events(wire: Wire) -> None:
    vm = wire.live.records.create("VM")
    uuid = wire.live.records.get("VM", vm)["uuid"]

    def work(talk: Talk) -> None:
        assert re.fullmatch(r"<value>\d+</value>", talk.call("event.get_current_id").value())
        assert talk.call("event.register", array("VM")).value() == "<value></value>"
        assert talk.call("VM.set_name_label", vm, "now").value()
        said = talk.call("event.next").value()
        assert said.startswith("<value><array><data><value><struct>")
        for name, value in (("operation", "mod"), ("ref", vm), ("obj_uuid", uuid), ("class", "vm")):
            assert f"<name>{name}</name><value>{value}</value>" in said
        assert talk.call("event.unregister", array("VM")).value() == "<value></value>"
        assert talk.call("event.next").error() == ["SESSION_NOT_REGISTERED", talk.session]
        assert talk.call("event.register", array("vm/")).error() == ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "vm/"]

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_one_by_one(wire: Wire) -> None:
    vm = wire.live.records.create("VM")

    def work(talk: Talk) -> None:
        for call in ("add", "add", "remove", "remove", "add"):
            assert talk.call(f"VM.{call}_tags", vm, "a").value() == "<value></value>"
        assert talk.call("VM.get_tags", vm).value() == f"<value>{array('a')}</value>"
        assert talk.call("VM.add_to_other_config", vm, "k", "&lt;v&gt;").value() == "<value></value>"
        assert "<name>k</name><value>&lt;v&gt;</value>" in talk.call("VM.get_other_config", vm).value()
        assert talk.call("VM.remove_from_other_config", vm, "k").value() == "<value></value>"
        assert talk.call("VM.get_other_config", vm).value() == "<value><struct></struct></value>"
        assert talk.call("VM.set_other_config", vm, struct(a="b")).value() == "<value></value>"
        assert talk.call("VM.set_other_config", vm, "a").error()[0] == "FIELD_TYPE_ERROR"
        assert talk.call("VM.set_power_state", vm, "Running").error() == [
            "MESSAGE_METHOD_UNKNOWN", "VM.set_power_state",
        ]  # fmt: skip

    await wire.talk(work)


@pytest_twisted.ensureDeferred
async def test_records(wire: Wire) -> None:
    records = wire.live.records
    one, two = (records.create("secret", value=name) for name in ("x", "y"))
    records.update("secret", one, other_config={})

    def work(talk: Talk) -> None:
        text = talk.call("secret.get_all_records").value()
        for ref in (one, two):
            assert f"<member><name>{ref}</name><value><struct><member><name>uuid</name>" in text
        assert talk.call("blob.get_all_records").value() == "<value><struct></struct></value>"
        assert talk.json("blob.get_all_records", talk.session)["result"] == {}
        assert set(talk.json("secret.get_all_records", talk.session)["result"]) == {one, two}

    await wire.talk(work)


@pytest.mark.parametrize(
    ("method", "fewest"),
    [
        ("host.migrate_receive", 3), ("VM.migrate_send", 6), ("VM.assert_can_migrate", 6), ("VM.pool_migrate", 3),
        ("VDI.pool_migrate", 3),
    ],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_arguments_of_migrations(wire: Wire, method: str, fewest: int) -> None:
    values = (NOBODY, "<struct/>", "<boolean>1</boolean>", "<struct/>", "<struct/>", "<struct/>", "<struct/>")

    def work(talk: Talk) -> None:
        cls = method.partition(".")[0]
        for name in (method,) if method == "host.migrate_receive" else (method, f"Async.{method}"):
            few = talk.call(name, *values[: fewest - 1]).error()
            assert few == ["MESSAGE_PARAMETER_COUNT_MISMATCH", method, str(fewest), str(fewest - 1)]
            enough = talk.call(name, *values[:fewest]).error()
            assert enough == ["HANDLE_INVALID", cls, NOBODY]
            more = talk.call(name, *values[:fewest], "<struct/>").error()
            # VM.migrate_send and VM.assert_can_migrate have a map of GPUs that may be left out
            assert more[0] == ("HANDLE_INVALID" if fewest == 6 else "MESSAGE_PARAMETER_COUNT_MISMATCH")

    await wire.talk(work)
