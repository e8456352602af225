"""What a client is told of a migration that failed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xapi_migrate.errors import (
    CopyFailed,
    DomainError,
    MigrateError,
    MigrationAborted,
    OperationNotAllowed,
    PeerSilent,
    RemoteError,
    SrBackendFailure,
    SrFull,
)
from xapi_migrate.migration.telling import failure
from xapi_migrate.steps import Step

MIGRATION = SimpleNamespace(
    vm="OpaqueRef:vm",
    host=SimpleNamespace(name="alpha"),
    peer=SimpleNamespace(destination="192.0.2.2:80"),
    story=SimpleNamespace(last=Step.GET_STATE),
)
STEP = f"(last step 3.6: {Step.GET_STATE.text})"


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (PeerSilent("HEAD", "no answer"), f"no answer (said by host alpha) {STEP}"),
        (SrBackendFailure("VDI 1 (deactivate)", "it died"), f"it died (said by host alpha) {STEP}"),
        (RemoteError(["SR_BACKEND_FAILURE", "", "VDI 2", "no"], "no"), f"no (said by 192.0.2.2:80) {STEP}"),
        (OperationNotAllowed("Not now."), f"Not now. (said by host alpha) {STEP}"),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_an_error_with_a_sentence_keeps_its_code_and_says_there_who_and_when(cause: MigrateError, said: str) -> None:
    code, *rest = failure(MIGRATION, str(cause), cause).failure()
    assert [code, *rest[:-1]] == cause.failure()[:-1]
    assert rest[-1] == said


@pytest.mark.parametrize(
    "cause",
    [
        None,
        CopyFailed("vdi", "no"),
        DomainError("domain", "alpha", "be sent", "it is crashed"),
        MigrationAborted("no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_of_anything_else_that_the_migration_failed(cause: MigrateError | None) -> None:
    told = failure(MIGRATION, "the sentence", cause)
    assert told.failure() == ["VM_MIGRATE_FAILED", "OpaqueRef:vm", "alpha", "192.0.2.2:80", f"the sentence {STEP}"]


@pytest.mark.parametrize("cause", [SrFull("sr", 4096, 512), RemoteError(["SR_FULL", "4096", "512"], "full")])
def test_an_error_that_programs_know_is_left_as_it_is(cause: MigrateError) -> None:
    assert failure(MIGRATION, str(cause), cause) is cause
