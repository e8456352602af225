"""The HTTP server of the daemon: the API at its root, the migration URIs beside it."""

from __future__ import annotations

import re
from typing import Any

from twisted.web.resource import IResource

from xapi_migrate.uris.reply import Reply
from xapi_migrate.uris.request import MigrationRequest, MigrationSite
from xapi_migrate.uris.tree import MigrationTree, below
from xapi_migrate.xenapi.endpoint import ApiResource

REQUEST_LIMIT = 300 << 10
_WHOLE = re.compile(rb"^https?://[^/]*(?=/)")
"""What clients write before the path when they think that they speak to a proxy."""
TOO_LONG = Reply(413, b"The call is too long.\n", "text/plain")


class ApiRequest(MigrationRequest):
    """Bounds the bodies of calls: refused when the headers say that one is too long, or when it becomes so."""

    _received = 0
    _bounded = False

    def gotLength(self, length: int | None) -> None:
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
        **options: Any,
    ) -> None:  # fmt: skip
        options.setdefault("requestFactory", ApiRequest)
        super().__init__(api, migrations, **options)
        self.request_limit = request_limit
        self.displayTracebacks = False
        self.trusted = False
        """Whoever connects is root on this host, or as good."""
