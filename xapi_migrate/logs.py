"""Logs that hide secrets.

Code never hands a secret to the log. This is the second fence: whatever text reaches a log file has
everything that looks like a capability, a session reference or a CHAP password taken out, tracebacks included.
"""

from __future__ import annotations

import re
from typing import IO, Any

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, Logger, eventAsText, formatTime
from zope.interface import provider

_SECRETS = re.compile(
    r"(?P<path>/migrate/)[^\s'\"#?/<>…]+"
    r"|(?<![A-Za-z0-9_-])[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"
    r"|OpaqueRef:[0-9A-Za-z-]+"
    r"|(?P<password>pass(?:word|wd)?[\"']?\s*[=:]\s*[\"']?)[^\s\"',}&]+",
    re.ASCII | re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text without what looks like a secret."""
    return _SECRETS.sub(lambda found: f"{found['path'] or found['password'] or ''}…", text)


def text_observer(out: IO[Any]) -> ILogObserver:
    """An observer that writes events as text, redacted, to a file."""

    def formatted(event: LogEvent) -> str:
        return redact(eventAsText(event, formatTime=formatTime)).replace("\n", "\n\t") + "\n"

    return FileLogObserver(out, formatted)


def redacting(observer: ILogObserver) -> ILogObserver:
    """An observer that hands each event on as redacted text: its level and time stay, its fields do not, for any of
    them might hold a secret."""

    @provider(ILogObserver)
    def redacted(event: LogEvent) -> None:
        kept: dict[str, Any] = {
            name: event.get(name) for name in ("log_level", "log_namespace", "log_time", "log_system") if name in event
        }
        text = redact(eventAsText(event, includeTimestamp=False, includeSystem=False))
        observer({**kept, "log_format": "{text}", "text": text})

    handed: ILogObserver = redacted
    return handed


def migration_log(namespace: str, migration: str) -> Logger:
    """A logger whose events name the migration (its id, which is no secret) as `log_source`."""
    return Logger(namespace=namespace, source=migration)
