"""What xapi passes to us of /services/plugin/NAME/...: the daemon's socket in xapi's folder of plugins.

xapi has authenticated whoever comes (reading for GET, pool-admin for POST) and sends the request as it came. So nobody
is root here for having come: a call needs its session, as everywhere.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import defer
from twisted.web import server
from twisted.web.resource import Resource

from .. import __doc__ as _about
from ..errors import MessageMethodUnknown
from ..migration.interfaces import PROTOCOL_VERSION
from ..together import started
from ..xenapi.endpoint import NotFound
from ..xenapi.site import ApiSite
from . import peek
from .calls import OURS, OverlayCalls
from .front import Mine, Reply
from .peek import wire_of

PREFIX = (b"services", b"plugin")
_NO_CALL = Reply(b"400 Bad Request", b"text/plain", b"This is no call.\n")


class _Plugin(Resource):
    """/services/plugin/NAME: GET says what this is, POST RPC2 or jsonrpc takes our own calls."""

    isLeaf = True

    def __init__(self, calls: OverlayCalls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"Content-Type", b"application/json")
        about = {"name": "xapi_migrate", "about": _about, "protocol": PROTOCOL_VERSION, "calls": sorted(OURS)}
        return json.dumps(about).encode() + b"\n"

    def render_POST(self, request: Any) -> Any:
        path, body = b"/" + b"/".join(request.postpath), request.content.read()
        form = wire_of(path)
        call = peek.parse(form, body) if form is not None else None
        gone: list[Any] = []
        request.notifyFinish().addErrback(gone.append)
        if call is None:
            return self._write(request, _NO_CALL, gone)
        decided = self._calls.decide(call, path, body, "plugin") if call.method in OURS else None
        if not isinstance(decided, Mine):
            words = MessageMethodUnknown(call.method).failure()
            return self._write(request, Reply(b"200 OK", call.content_type, call.failure(words)), gone)
        work: defer.Deferred[Any] = started(decided.work)
        work.addCallback(lambda reply: self._write(request, reply, gone))
        return server.NOT_DONE_YET

    def _write(self, request: Any, reply: Reply, gone: list[Any]) -> Any:
        if not gone:
            request.setResponseCode(int(reply.status[:3]))
            request.setHeader(b"Content-Type", reply.content_type)
            request.setHeader(b"Content-Length", str(len(reply.body)).encode())
            request.write(reply.body)
            request.finish()
        return server.NOT_DONE_YET


class _Folder(Resource):
    def getChild(self, path: bytes, request: Any) -> Resource:
        return NotFound()


def plugin_site(calls: OverlayCalls, name: str, limit: int) -> ApiSite:
    """What the socket of the plugin `name` is opened with."""
    root = here = _Folder()  # type: ignore[no-untyped-call]
    for word in PREFIX:
        below = _Folder()  # type: ignore[no-untyped-call]
        here.putChild(word, below)
        here = below
    here.putChild(name.encode(), _Plugin(calls))
    return ApiSite(root, None, limit)
