"""The HTTP side of the API: POST / /RPC2 /xmlrpc (XML-RPC) and /jsonrpc /json (JSON-RPC 1.0 and 2.0).

What is wrong with a call is told in the answer, with status 200. HTTP statuses are for what is no call: 400 a body that
is none, 405 another method than POST, 413 a body that is too long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.resource import Resource

from xapi_migrate.entrance import shown
from xapi_migrate.errors import MigrateError
from xapi_migrate.xenapi import jsonrpc, wire
from xapi_migrate.xenapi.dispatch import LIST_METHODS, Dispatcher
from xapi_migrate.xenapi.sessions import TRUSTED
from xapi_migrate.xenapi.tasks import description
from xapi_migrate.xenapi.wire import Malformed

log = Logger()
XML_PATHS = (b"", b"RPC2", b"xmlrpc")
JSON_PATHS = (b"jsonrpc", b"json")
_FOR_BROWSERS = (
    (b"Allow", b"POST, OPTIONS"),
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"POST, OPTIONS"),
    (b"Access-Control-Allow-Headers", b"Content-Type"),
)
"""A page of another origin asks by OPTIONS before it sends JSON."""


class _Calls(Resource, ABC):
    """A leaf that takes calls; what follows in the path does not matter, there is nothing below."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatcher = dispatcher

    def render(self, request: Any) -> Any:
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        if request.method == b"OPTIONS":
            for name, value in _FOR_BROWSERS:
                request.setHeader(name, value)
            return b""
        if request.method != b"POST":
            request.setResponseCode(405)
            request.setHeader(b"Allow", b"POST, OPTIONS")
            request.setHeader(b"Content-Type", b"text/plain")
            return b"" if request.method == b"HEAD" else b"XenAPI is spoken here, by POST.\n"
        gone: list[bool] = []
        request.notifyFinish().addErrback(gone.append)
        body = request.content.read()
        work = defer.Deferred.fromCoroutine(self._answer(request, body))
        work.addErrback(lambda failure: self._broken(request, failure))

        def write(answer: bytes) -> None:
            if not gone:
                # one write: headers and body in two would cost the peer's delayed ACK
                request.setHeader(b"Content-Length", str(len(answer)).encode())
                request.write(answer)
                request.finish()

        work.addCallback(write)
        return server.NOT_DONE_YET

    @abstractmethod
    async def _answer(self, request: Any, body: bytes) -> bytes:
        """The answer to a whole body. Malformed."""

    async def _run(self, request: Any, method: str, params: list[Any]) -> Any:
        if getattr(request.channel.site, "trusted", False):
            origin = TRUSTED
        else:
            origin = getattr(request.getClientAddress(), "host", "") or "local"
        if params and self._dispatcher.knows(params[0]):
            shown(request)
        return await self._dispatcher.call(method, params, origin)

    def _broken(self, request: Any, failure: Failure) -> bytes:
        request.setHeader(b"Content-Type", b"text/plain")
        if failure.check(Malformed):
            request.setResponseCode(400)
            return f"This is no call: {failure.value}.\n".encode()
        log.failure("The answer to a call could not be made", failure)
        request.setResponseCode(500)
        return b"The call failed; the log of this server says more.\n"


class XmlCalls(_Calls):
    """XML-RPC."""

    isLeaf = False

    async def _answer(self, request: Any, body: bytes) -> bytes:
        request.setHeader(b"Content-Type", wire.CONTENT_TYPE)
        request.setHeader(b"Access-Control-Allow-Origin", b"*")
        method = ""
        try:
            method, params = wire.parse_call(body)
            result = await self._run(request, method, params)
            return wire.bare(result) if method == LIST_METHODS else wire.success(result)
        except Malformed:
            raise
        except Exception as error:
            _note(method, error)
            return wire.failure(description(error))


class JsonCalls(_Calls):
    """JSON-RPC."""

    isLeaf = True

    async def _answer(self, request: Any, body: bytes) -> bytes:
        request.setHeader(b"Content-Type", jsonrpc.CONTENT_TYPE)
        request.setHeader(b"Access-Control-Allow-Origin", b"*")
        call = jsonrpc.read_call(body)
        try:
            jsonrpc.check_call(call)
            return jsonrpc.success(call, await self._run(request, call.method, call.params))
        except Malformed:
            raise
        except Exception as error:
            _note(call.method, error)
            return jsonrpc.failure(call, description(error))


def _note(method: str, error: Exception) -> None:
    """A bug of ours is logged with its traceback; what a client did wrong is not news."""
    if not isinstance(error, MigrateError | defer.CancelledError):
        log.failure("The call {method} failed", method=method)


class NotFound(Resource):
    """Nothing is there, said as text."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def render(self, request: Any) -> bytes:
        request.setResponseCode(404)
        request.setHeader(b"Content-Type", b"text/plain")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        return b"Not found.\n"


class ApiResource(XmlCalls):
    """The root of the site: calls at / itself and at the paths of old, other trees as its children."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher)
        json = JsonCalls(dispatcher)
        for path in XML_PATHS:
            self.putChild(path, self)
        for path in JSON_PATHS:
            self.putChild(path, json)

    def getChild(self, path: bytes, request: Any) -> Resource:
        return NotFound()
