"""One request below /migrate from its headers to its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .reply import Reply, too_long


class Answering(Protocol):
    """What an exchange needs of its request."""

    def proceed(self) -> None: ...
    def reply(self, reply: Reply) -> None: ...
    def refuse(self, reply: Reply) -> None: ...


class Exchange(Protocol):
    """The order is: began, received any number of times, then complete or lost. Once the request has been refused
    only lost follows."""

    def began(self, length: int | None) -> None:
        """The headers are in; `length` of the body in bytes, None where only its end will tell."""

    def received(self, data: bytes) -> None:
        """Some of the body."""

    def complete(self) -> None:
        """All of the body has been received."""

    def lost(self) -> None:
        """The connection is gone, and the request with it."""


class Whole:
    """Collects a body up to `limit` bytes, never more, and answers when it is in."""

    def __init__(self, request: Answering, limit: int, answer: Callable[[bytes], None]) -> None:
        self._request = request
        self._limit = limit
        self._answer = answer
        self._body = bytearray()

    def began(self, length: int | None) -> None:
        if length is not None and length > self._limit:
            self._request.refuse(too_long(self._limit))
        elif length != 0:
            self._request.proceed()

    def received(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._limit:
            self._body.clear()
            self._request.refuse(too_long(self._limit))
        else:
            self._body += data

    def complete(self) -> None:
        self._answer(bytes(self._body))

    def lost(self) -> None:
        self._body.clear()
