"""The HTTP server of the daemon: the API at its root, the migration URIs beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from twisted.web.resource import IResource

from xapi_migrate.entrance import shown
from xapi_migrate.uris.reply import Reply
from xapi_migrate.uris.request import MigrationRequest, MigrationSite
from xapi_migrate.uris.tree import MigrationTree, below
from xapi_migrate.xenapi.endpoint import ApiResource
from xapi_migrate.xenapi.import_stream import MetadataImports, is_import

REQUEST_LIMIT = 300 << 10
_WHOLE = re.compile(rb"^https?://[^/]*(?=/)")
"""What clients write before the path when they think that they speak to a proxy."""
TOO_LONG = Reply(413, b"The call is too long.\n", "text/plain")


class ApiRequest(MigrationRequest):
    """Bounds the bodies of calls: refused when the headers say that one is too long, or when it becomes so."""

    exchange: Any
    _received = 0
    _bounded = False

    def gotLength(self, length: int | None) -> None:
        imports = self._channel.site.imports
        if imports is not None and is_import(self._channel._command, self._channel._path):
            self._begin_import(imports, length)
            return
        super().gotLength(length)
        self._bounded = not below(self._channel._path)
        if self._bounded and length is not None and length > self._limit:
            self.requestHeaders.removeHeader(b"expect")
            self._too_long()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._bounded and self._closed:
            self._throw_away(data)
        elif self._bounded and self._received > self._limit:
            self._too_long()
        else:
            super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._bounded and self._closed:
            self._channel.loseConnection()
        else:
            super().requestReceived(command, _WHOLE.sub(b"", path), version)

    # -- PUT /import_metadata --------------------------------------------------------------------

    def _begin_import(self, imports: MetadataImports, length: int | None) -> None:
        path, cookies = self._channel._path, self.requestHeaders.getRawHeaders(b"cookie", [])
        self.claim(b"/import_metadata")  # nothing that prints a request may print a session
        self.exchange = imports.exchange(self, path, cookies)
        self.exchange.began(length)

    def begin_answer(self, headers: Mapping[str, str]) -> None:
        """200 with these headers, while the body is still to come: the session is good."""
        shown(self)
        self.setResponseCode(200)
        self._web.setHeader(b"Connection", b"close")
        for name, value in headers.items():
            self._web.setHeader(name.encode(), value.encode())
        self._web.write(b"")

    def end_answer(self) -> None:
        """The answer has ended, and with it the connection."""
        if not self._gone:
            channel = self._channel
            self._web.finish()
            channel.loseConnection()

    def hold(self, held: bool) -> None:
        """Take no more of the body for now."""
        if self._channel is not None:
            transport = self._channel.transport
            transport.pauseProducing() if held else transport.resumeProducing()

    def _too_long(self) -> None:
        self.method, self.clientproto = self._channel._command, self._channel._version
        self.uri = self.path = b"/"
        self.refuse(TOO_LONG)

    @property
    def _limit(self) -> int:
        limit: int = self._channel.site.request_limit
        return limit


class ApiSite(MigrationSite):
    """The site. Further trees are children of `api`. There is no access log."""

    def __init__(
        self, api: ApiResource | IResource, migrations: MigrationTree | None = None, request_limit: int = REQUEST_LIMIT,
        imports: MetadataImports | None = None, **options: Any,
    ) -> None:  # fmt: skip
        options.setdefault("requestFactory", ApiRequest)
        super().__init__(api, migrations, **options)
        self.request_limit = request_limit
        self.imports = imports
        self.displayTracebacks = False
        self.trusted = False
        """Whoever connects is root on this host, or as good."""
