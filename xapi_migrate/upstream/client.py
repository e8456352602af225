"""Our own calls to the upstream, by its JSON-RPC, each with the session of whoever we act for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet import defer

from ..errors import OperationNotAllowed, RemoteError
from ..together import started
from ..xenapi.wire import fit
from . import exchange
from .address import UpstreamAddress
from .pool import Kind, Pool
from .refusals import UpstreamSilent

SECONDS = 60.0
"""How long one of our calls may take."""
ANSWER_LIMIT = 64 << 20
_REFUSALS = {401: "SESSION_INVALID", 403: "RBAC_PERMISSION_DENIED"}
"""What the status of a stream means in words of a call."""
_WORDS = 20
"""Parameters of an error that are believed."""


class UpstreamClient:
    def __init__(self, address: UpstreamAddress, pool: Pool, clock: Any) -> None:
        self._address = address
        self._pool = pool
        self._clock = clock

    async def call(self, method: str, *params: Any, seconds: float = SECONDS) -> Any:
        """The result. RemoteError with the upstream's own words; UpstreamSilent."""
        call = {"jsonrpc": "2.0", "method": method, "params": params, "id": 0}
        body = json.dumps(call, separators=(",", ":")).encode()
        raw = await self.send(b"/jsonrpc", b"application/json", body, ".get_" in method, seconds)
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._silent("its answer is no JSON", True) from None
        if not isinstance(answer, dict):
            raise self._silent("its answer is no answer to a call", True)
        if answer.get("error") is not None:
            raise refusal(answer["error"])
        if "result" not in answer:
            raise self._silent("its answer has no result", True)
        return answer["result"]

    async def tolerant(self, method: str, *params: Any, also: Sequence[str] = (), seconds: float = SECONDS) -> Any:
        """As `call`; None where what it is about is gone already, which is as good, or where it says one of `also`."""
        try:
            return await self.call(method, *params, seconds=seconds)
        except RemoteError as told:
            if told.failure()[0] not in ("HANDLE_INVALID", *also):
                raise
            return None

    async def send(
        self, path: bytes, content_type: bytes, body: bytes, repeatable: bool, seconds: float | None = SECONDS,
        kind: Kind = Kind.CALL,
    ) -> bytes:  # fmt: skip
        """What a call is answered, unread. UpstreamSilent, also for another status than 200. `seconds` None: for as
        long as it takes."""
        request = exchange.request(b"POST", self._address.netloc, path, content_type, body)
        answer = await self._ask(request, repeatable, seconds, kind)
        if answer.status != 200:
            raise self._silent(f"it answered with status {answer.status}", True)
        return answer.body

    async def put(self, path: bytes, body: bytes, cookie: str, seconds: float = SECONDS) -> None:
        """PUT of a stream of the upstream's, until its answer ends; `cookie` says whose session it is.
        OperationNotAllowed if the upstream has no such stream, RemoteError if it does not let him; UpstreamSilent, also
        for any other status than 200."""
        request = exchange.request(b"PUT", self._address.netloc, path, b"application/octet-stream", body, cookie)
        answer = await self._ask(request, False, seconds, Kind.CALL, keep=False)
        if answer.status in (404, 405, 501):
            raise OperationNotAllowed(f"The toolstack at {self._address} does not know PUT {path.decode()}.")
        if answer.status in _REFUSALS:
            code = _REFUSALS[answer.status]
            raise RemoteError([code, ""], f"{code}: PUT {path.decode()}")
        if answer.status != 200:
            raise self._silent(f"it answered with status {answer.status}", True)

    async def _ask(
        self, request: bytes, repeatable: bool, seconds: float | None, kind: Kind, keep: bool = True
    ) -> exchange.Answer:
        asked = started(exchange.ask(self._pool, request, ANSWER_LIMIT, repeatable, kind, keep))
        if seconds is not None:
            asked.addTimeout(seconds, self._clock)
        try:
            return await asked
        except exchange.NoAnswer as why:
            raise self._silent(str(why), why.tried) from None
        except defer.TimeoutError:
            raise self._silent(f"there was no answer in {seconds:g} seconds", True) from None

    def crowded(self, kind: Kind) -> bool:
        """Whether a call of this kind has to wait for a connection."""
        return self._pool.crowded(kind)

    def _silent(self, reason: str, tried: bool) -> UpstreamSilent:
        return UpstreamSilent.after(str(self._address), reason, tried)


def refusal(error: Any) -> RemoteError:
    """What an `error` of JSON-RPC says, 1.0 or 2.0; hostile ones too become an error of bounded text."""
    words: list[Any] = []
    if isinstance(error, dict):
        data = error.get("data")
        words = [error.get("message"), *(data if isinstance(data, list) else [])]
    elif isinstance(error, list):
        words = error
    said = [fit(str(word))[:1000] for word in words[:_WORDS] if isinstance(word, str | int | float)]
    said = said or ["INTERNAL_ERROR", "the upstream told no reason"]
    return RemoteError(said, ": ".join(said))
