"""A server and raw conversations with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet import threads

from tests.wire.raw import Answer, Conversation, post, xml
from tests.xenapi.live import PASSWORD, USER, Live

NOBODY = "OpaqueRef:nobody"
LOGIN = xml("session.login_with_password", USER, PASSWORD)


@attrs.define
class Wire:
    """The server and a session of it. `talk` runs a test's work in a thread, with a connection of its own."""

    live: Live
    session: str

    async def talk(self, work: Callable[[Talk], Any]) -> Any:
        def run() -> Any:
            with Conversation(("127.0.0.1", self.live.port)) as conversation:
                return work(Talk(conversation, self.session, self.live.port))

        return await threads.deferToThread(run)


@attrs.define
class Talk:
    conversation: Conversation
    session: str
    port: int

    def ask(self, body: bytes | str, path: str = "/") -> Answer:
        self.conversation.say(post(body, path))
        return self.conversation.answer()

    def call(self, method: str, *values: str) -> Answer:
        return self.ask(xml(method, self.session, *values))

    def json(self, method: str, *params: object, path: str = "/jsonrpc", **more: object) -> Any:
        answer = self.ask(json.dumps({"method": method, "params": params, "id": 7, **more}), path)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        return answer.json
