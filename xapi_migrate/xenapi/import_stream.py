"""PUT /import_metadata: a VM's metadata from a client, as xapi takes it.

    PUT /import_metadata?restore=true&dry_run=true      Cookie: session_id=REF; task_id=REF

Session and task may be in the query too. Who has no session is told 401 at the headers, before any of the body is
taken. The answer, 200, begins before the body has come and ends when the import has: how that went, the task says,
whose ref is in the header task-id; its result is the list of the VMs' refs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import attrs
from twisted.internet import defer
from twisted.logger import Logger
from twisted.python.failure import Failure

from xapi_migrate.errors import HandleInvalid, ImportError_, MigrateError, SessionInvalid
from xapi_migrate.refusals import ImportBroken
from xapi_migrate.store.interfaces import IRecords
from xapi_migrate.together import started
from xapi_migrate.uris.exchange import Answering, Exchange
from xapi_migrate.uris.reply import Reply, refused, too_long
from xapi_migrate.xenapi.sessions import Sessions
from xapi_migrate.xenapi.tasks import PENDING, Task, Tasks

PATH = b"/import_metadata"
_LABEL = "VM.metadata_import"
_MOST_OPTIONS = 32
_LONGEST = 4096
"""Bytes of a query, and of cookies."""
UNAUTHORISED = Reply(401, b"PUT /import_metadata needs the session_id of a session.\n", "text/plain")
BROKEN = Reply(500, b"The import could not be taken; the log of this server says more.\n", "text/plain")

log = Logger()


@attrs.frozen
class Wish:
    """What a client wants of an import. `restore`: the VM keeps its uuid and its MAC addresses. `dry_run`: nothing is
    made. `other`: what nothing here can do, by its name; "" if it wants no such thing."""

    restore: bool = False
    dry_run: bool = False
    other: str = ""


class Importing(Protocol):
    """Who imports: see toolstack/importing.py."""

    async def run(self, document: bytes, wish: Wish) -> list[str]:
        """The refs of the VMs; none where nothing was to be made. MigrateError, and then nothing of it is left."""


class ImportRequest(Answering, Protocol):
    """What an import needs of its request, see site.py."""

    def begin_answer(self, headers: Mapping[str, str]) -> None: ...
    def end_answer(self) -> None: ...
    def hold(self, held: bool) -> None: ...


def is_import(method: bytes, path: bytes) -> bool:
    """`path` with its query, as it came."""
    return method == b"PUT" and path.partition(b"?")[0] == PATH


class MetadataImports:
    """All of this server's. `limit` of a body in bytes."""

    def __init__(self, importing: Importing, sessions: Sessions, tasks: Tasks, records: IRecords, limit: int) -> None:
        self.importing = importing
        self.sessions = sessions
        self.tasks = tasks
        self.limit = limit
        self._records = records

    def exchange(self, request: ImportRequest, path: bytes, cookies: Sequence[bytes]) -> Exchange:
        """Of a request whose headers are in."""
        return _Import(self, request, _options(path, cookies))

    def task_of(self, ref: str, user: str) -> Task:
        """The task that tells of an import: the client's own of this ref, which is its own no more, or a new one.
        HandleInvalid, also for one that is not his, or is over."""
        if not ref:
            return self.tasks.begin(_LABEL, user=user)
        record = self._records.get("task", ref)
        if not record.get("_by_client") or record["status"] != PENDING:
            raise HandleInvalid("task", ref)
        self._records.update("task", ref, _by_client=False)
        return self.tasks.get(ref)


class _Import:
    """One of them, from its headers on."""

    def __init__(self, imports: MetadataImports, request: ImportRequest, options: dict[str, str] | None) -> None:
        self._imports = imports
        self._request = request
        self._options = options
        self._body = bytearray()
        self._complete = False
        self._over = False
        self._task: Task | None = None

    def began(self, length: int | None) -> None:
        if self._options is None:
            self._refuse(refused(400, "The query of PUT /import_metadata, or its cookies, cannot be read."))
        elif length is not None and length > self._imports.limit:
            self._refuse(too_long(self._imports.limit))
        else:
            self._request.hold(True)  # nothing is taken of who may have no session
            started(self._admit(self._options)).addErrback(lambda failure: log.failure("PUT /import_metadata", failure))

    async def _admit(self, options: dict[str, str]) -> None:
        try:
            user = await self._imports.sessions.look_for(options.get("session_id"))
            task = self._imports.task_of(options.get("task_id", ""), user)
        except HandleInvalid:
            self._refuse(refused(400, "Its task_id is no task of the client's own that is pending."))
            return
        except SessionInvalid:
            self._refuse(UNAUTHORISED)
            return
        except Exception:
            log.failure("PUT /import_metadata could not be taken")
            self._refuse(BROKEN)
            return
        if self._over:
            task.fail(ImportBroken())
            return
        self._task = task
        self._request.proceed()
        self._request.begin_answer(
            {"Content-Type": "application/octet-stream", "Cache-Control": "no-store", "task-id": task.ref}
        )
        self._request.hold(False)
        if self._complete:
            self._run(task)

    def _refuse(self, reply: Reply) -> None:
        self._over = True
        self._body.clear()
        self._request.refuse(reply)

    def received(self, data: bytes) -> None:
        if self._over:
            return
        self._body += data
        if len(self._body) <= self._imports.limit:
            return
        if self._task is None:
            self._refuse(too_long(self._imports.limit))
            return
        # its headers did not say so, and the answer has begun: only the task can tell
        self._over = True
        self._body.clear()
        self._task.fail(ImportError_(f"it is longer than {self._imports.limit} bytes"))
        self._request.end_answer()

    def complete(self) -> None:
        self._complete = True
        if self._task is not None and not self._over:
            self._run(self._task)

    def lost(self) -> None:
        if self._over or self._complete:
            return  # what came whole is imported, whoever hears of it
        self._over = True
        self._body.clear()
        if self._task is not None:
            self._task.fail(ImportBroken())

    def _run(self, task: Task) -> None:
        self._over = True
        document, options = bytes(self._body), self._options or {}
        self._body.clear()
        work: defer.Deferred[Any] = started(self._imports.importing.run(document, _wish(options)))
        work.addCallbacks(task.succeed, lambda failure: self._failed(task, failure))
        work.addBoth(lambda _: self._request.end_answer())
        work.addErrback(lambda failure: log.failure("PUT /import_metadata", failure))

    def _failed(self, task: Task, failure: Failure) -> None:
        why: Any = failure.value
        if not isinstance(why, MigrateError):
            log.failure("an import of metadata failed", failure)
        task.fail(why)


def _options(path: bytes, cookies: Sequence[bytes]) -> dict[str, str] | None:
    """What the query and the cookies say; None if that cannot be read. The query comes first."""
    query = path.partition(b"?")[2]
    if len(query) > _LONGEST or sum(map(len, cookies)) > _LONGEST:
        return None
    try:
        told = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_OPTIONS)
        carried = b";".join(cookies).decode("ascii").split(";")
    except ValueError:
        return None
    pairs = [part.strip().partition("=") for part in carried if part.strip()]
    found = {name: value for name, _, value in pairs}
    return {**found, **dict(told)}


def _wish(options: Mapping[str, str]) -> Wish:
    """Names that are not known are without effect, as at xapi."""
    other = ["live"] if options.get("live") == "true" else [name for name in options if name.startswith("vdi:")]
    return Wish(options.get("restore") == "true", options.get("dry_run") == "true", other[0][:50] if other else "")
