"""What other members ask of this one."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.resource import Resource

from xapi_migrate.entrance import shown
from xapi_migrate.errors import InternalError, MigrateError
from xapi_migrate.pool import wire
from xapi_migrate.together import started

log = Logger()
Answerer = Callable[[Mapping[str, Any]], Awaitable[Any] | Any]


class MemberResource(Resource):
    """POST /member. `answers` has a function for each kind of request (`what`). Whoever does not know the secret, or
    does not come over TLS, gets what he would get if nothing were here."""

    isLeaf = True

    def __init__(self, secret: str, answers: Mapping[str, Answerer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._secret = b"Bearer " + secret.encode()
        self._answers = answers

    def render(self, request: Any) -> Any:
        told = request.getHeader(b"authorization") or b""
        known = hmac.compare_digest(told, self._secret)
        if not (known and request.isSecure() and request.method == b"POST" and not request.postpath):
            request.setResponseCode(404)
            request.setHeader(b"Content-Type", b"text/plain")
            return b"Not found.\n"
        shown(request)
        gone: list[bool] = []
        request.notifyFinish().addErrback(gone.append)
        work = started(self._answer(request.content.read()))
        work.addErrback(_broken)

        def write(body: bytes) -> None:
            if not gone:
                request.setHeader(b"Content-Type", b"application/json")
                request.setHeader(b"Content-Length", str(len(body)).encode())
                request.write(body)
                request.finish()

        work.addCallback(write)
        return server.NOT_DONE_YET

    async def _answer(self, body: bytes) -> bytes:
        told = json.loads(body)
        answerer = self._answers[told["what"]]
        try:
            value = answerer(told)
            if isinstance(value, Awaitable):
                value = await value
        except MigrateError as error:
            return wire.refusal(error)
        return wire.answer(value)


def _broken(failure: Failure) -> bytes:
    if not failure.check(defer.CancelledError):
        log.failure("What a member asked for failed", failure)
    return wire.refusal(InternalError("the member failed; its log says more"))
