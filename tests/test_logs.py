from __future__ import annotations

from io import StringIO

import pytest
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure

from xapi_migrate.logs import migration_log, redact, redacting, text_observer
from xapi_migrate.uris.capability import Capability

SECRET = Capability.new().text


@pytest.mark.parametrize(
    "text, left",
    [
        (f"http://h:1/migrate/{SECRET}/disk/0", "http://h:1/migrate/…/disk/0"),
        (f"http://h:1/migrate/{SECRET}#sha256={'a' * 64}", f"http://h:1/migrate/…#sha256={'a' * 64}"),
        (f"'{SECRET}'", "'…'"),
        ("session OpaqueRef:0b6e2e3c-77a1-4d36-9c1c-6a2f2d2a1c11 ended", "session … ended"),
        ('{"password": "x y"}', '{"password": "… y"}'),
        ("password=hunter2&x=1", "password=…&x=1"),
        (
            "the VM 2b5d8b64-1ff8-4b1f-9a31-4c1b5a1d7c3e, step 4.1",
            "the VM 2b5d8b64-1ff8-4b1f-9a31-4c1b5a1d7c3e, step 4.1",
        ),
    ],
)
def test_what_is_taken_out(text, left):
    assert redact(text) == left


def test_events_and_tracebacks_lose_their_secrets():
    written, handed = StringIO(), []
    observers = [text_observer(written), redacting(handed.append)]
    for one in observers:
        globalLogPublisher.addObserver(one)
    try:
        log = Logger()
        log.info("put {uri}", uri=f"http://h/migrate/{SECRET}")
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.failure("broke", failure=Failure())
        migration_log("xapi_migrate.x", "m-17").warn("migration {log_source}: slow")
    finally:
        for one in observers:
            globalLogPublisher.removeObserver(one)
    assert SECRET not in written.getvalue() + repr(handed)
    assert "put http://h/migrate/…" in written.getvalue()
    assert "ValueError: …" in written.getvalue()
    assert [event["text"] for event in handed][2] == "migration m-17: slow"
    assert handed[1]["log_level"].name == "critical" and "ValueError" in handed[1]["text"]
