"""The XenAPI server put together, so that daemon and tests wire it the same way."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

import attrs
from twisted.cred.checkers import ICredentialsChecker

from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.uris.tree import MigrationTree
from xapi_migrate.xenapi.dispatch import Dispatcher
from xapi_migrate.xenapi.endpoint import ApiResource
from xapi_migrate.xenapi.event_calls import EventCalls
from xapi_migrate.xenapi.events import Events
from xapi_migrate.xenapi.import_stream import Importing, MetadataImports
from xapi_migrate.xenapi.session_calls import SessionCalls
from xapi_migrate.xenapi.sessions import Sessions
from xapi_migrate.xenapi.site import REQUEST_LIMIT, ApiSite
from xapi_migrate.xenapi.task_calls import TaskCalls
from xapi_migrate.xenapi.tasks import Tasks


@attrs.frozen
class XenAPIServer:
    """The parts. `dispatcher.register(...)` adds calls; `site()` gives what a port is opened with."""

    records: Records
    sessions: Sessions
    tasks: Tasks
    events: Events
    dispatcher: Dispatcher
    api: ApiResource

    def site(
        self, migrations: MigrationTree | None = None, request_limit: int = REQUEST_LIMIT,
        imports: MetadataImports | None = None, **options: Any,
    ) -> ApiSite:  # fmt: skip
        return ApiSite(self.api, migrations, request_limit, imports, **options)

    def imports(self, importing: Importing, limit: int) -> MetadataImports:
        """PUT /import_metadata for `site`: by `importing`, of a body of at most `limit` bytes."""
        return MetadataImports(importing, self.sessions, self.tasks, self.records, limit)

    def start(self) -> None:
        """Begin the periodic work."""
        self.sessions.start()
        self.tasks.start()

    def stop(self) -> None:
        """End it, and let every waiting call go."""
        self.sessions.stop()
        self.tasks.stop()
        self.events.stop()
        self.dispatcher.stop()


def make_server(
    records: Records, checkers: list[ICredentialsChecker], reactor: Any, host: Callable[[], str] = lambda: NULL,
    sessions: Sessions | None = None, elsewhere: Container[str] = frozenset(),
) -> XenAPIServer:  # fmt: skip
    """`records` are open. `host` tells this host's ref, "this host" of sessions and tasks. Beside an upstream the
    sessions are its own, and so are the objects of the classes `elsewhere`."""
    sessions = sessions or Sessions(records, checkers, reactor, host)
    tasks = Tasks(records, reactor, host)
    events = Events(records.model, records, sessions, reactor)
    dispatcher = Dispatcher(records.model, records, sessions, tasks, elsewhere)
    dispatcher.register(SessionCalls(sessions), TaskCalls(records, tasks), EventCalls(events, records))
    return XenAPIServer(records, sessions, tasks, events, dispatcher, ApiResource(dispatcher))
