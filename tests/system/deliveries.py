"""What a network may do to requests: deliver one twice, or late. Used by the relay (proxy.py)."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Callable
from enum import Enum, auto

import attrs

VERBS = (b"HEAD", b"GET", b"PUT", b"DELETE")
REQUEST = re.compile(rb"(%s) /migrate/[A-Za-z0-9_-]{43}(/[a-z0-9/]*)? HTTP/1\.1\r\n" % b"|".join(VERBS))
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
MEMORY = "PUT /memory"

HELD = 1.5
"""Seconds for which a late request waits for one that overtakes it."""
ANSWERED = 15.0
"""Seconds for the answer to a second delivery."""


class Fate(Enum):
    """What becomes of a request. A second delivery is made on a connection of its own, and its answer is thrown away:
    BEFORE the one that is answered, BESIDE it, or AFTER the next request on any connection. A LATE one is held back
    until the next on another connection was answered."""

    ONCE = auto()
    BEFORE = auto()
    BESIDE = auto()
    AFTER = auto()
    LATE = auto()


class Cutter:
    """Cuts what a client sends into requests with their bodies. What comes behind the head of a PUT memory, and all
    that is no migration request, is stream."""

    def __init__(self) -> None:
        self._rest = b""
        self._stream = False

    def cut(self, data: bytes) -> list[tuple[str, bytes]]:
        """(name, bytes), the name being like "PUT /control", and "" for stream."""
        found: list[tuple[str, bytes]] = []
        self._rest += data
        while self._rest and not self._stream:
            head, end, _ = self._rest.partition(b"\r\n\r\n")
            match = REQUEST.match(head + end)
            if match is None:
                verb = self._rest[:7].split(b" ")[0]
                self._stream = bool(end) or not any(one.startswith(verb) for one in VERBS)
                if not self._stream:
                    break  # the beginning of a request
                continue
            if not end:
                break
            name = f"{match[1].decode()} {(match[2] or b'').decode()}".strip()
            length = LENGTH.search(head + end)
            size = len(head + end) + (int(length[1]) if length else 0)
            self._stream = name == MEMORY
            if len(self._rest) < size:
                break
            found.append((name, self._rest[:size]))
            self._rest = self._rest[size:]
        if self._stream and self._rest:
            found.append(("", self._rest))
            self._rest = b""
        return found


@attrs.define(eq=False)
class Line:
    """One connection through the relay. `loses`: its next answer is thrown away. `frees`: requests that its own has
    overtaken; they go on when it is answered."""

    loses: bool = False
    frees: list[threading.Event] = attrs.field(factory=list)

    def answered(self) -> None:
        freed, self.frees = self.frees, []
        for held in freed:
            held.set()


class Deliveries:
    """To `target`. `fate` is asked for each request, by its name. `again` has the status of each second delivery, 0
    where there was no answer; `late` the names of those that were overtaken; `record` all that was delivered."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.fate: Callable[[str], Fate] = once
        self.again: list[tuple[str, int]] = []
        self.late: list[str] = []
        self.record: list[tuple[str, bytes]] = []
        self._target = target
        self._lock = threading.Lock()
        self._held: list[threading.Event] = []
        self._after: list[tuple[str, bytes]] = []
        self._threads: list[threading.Thread] = []

    def deliver(self, name: str, request: bytes, line: Line, send: Callable[[bytes], None]) -> None:
        """Send a request on, as its fate wants it."""
        self.record.append((name, request))
        with self._lock:
            overtakes, self._held = self._held, []
            due, self._after = self._after, []
            fate = Fate.ONCE if overtakes else self.fate(name)
        line.frees += overtakes
        if fate is Fate.BEFORE:
            self.repeat(name, request)
        elif fate is Fate.LATE:
            self._hold(name)
        send(request)
        if fate is Fate.BESIDE:
            due.append((name, request))
        for one in due:
            self._beside(*one)
        if fate is Fate.AFTER:
            with self._lock:
                self._after.append((name, request))

    def calm(self) -> None:
        """From now on each once; what is still to be delivered is delivered now."""
        self.fate = once
        self.record = []
        with self._lock:
            due, self._after = self._after, []
            held, self._held = self._held, []
        for waiting in held:
            waiting.set()
        for one in due:
            self.repeat(*one)
        until = time.monotonic() + ANSWERED
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._threads.clear()

    def _hold(self, name: str) -> None:
        held = threading.Event()
        with self._lock:
            self._held.append(held)
        if held.wait(HELD):
            self.late.append(name)
        with self._lock:
            if held in self._held:
                self._held.remove(held)

    def _beside(self, name: str, request: bytes) -> None:
        thread = threading.Thread(target=self.repeat, args=(name, request), daemon=True)
        self._threads.append(thread)
        thread.start()

    def repeat(self, name: str, request: bytes) -> None:
        """Deliver it once more, on a connection of its own; returns when it is answered."""
        status = 0
        try:
            with socket.create_connection(self._target, 5) as line:
                line.settimeout(ANSWERED)
                line.sendall(request)
                answer = http.client.HTTPResponse(line, method=name.split(" ")[0])
                answer.begin()
                answer.read()
                status = answer.status
        except (OSError, http.client.HTTPException):
            pass
        self.again.append((name, status))


def once(name: str) -> Fate:
    """As it should be."""
    return Fate.ONCE
