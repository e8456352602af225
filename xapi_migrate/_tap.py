"""The daemon's command line and the service that holds the daemon; what `twist xapi-migrate` loads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from . import own_process
from .config import Config
from .configuration import ConfigError, build, load, merge, setting, show
from .errors import MigrateError
from .processes.folder_lock import FolderTaken
from .steady import make_steady

if TYPE_CHECKING:
    from .daemon import Daemon


class Options(UsageOptions):
    """What may be said on the command line; each option also has a name in the file of --config."""

    synopsis: str
    longdesc = "Moves virtual machines between hosts, with their disks, while they run; speaks XenAPI."

    optParameters = [
        ["config", "c", None, "TOML file of settings; the options here win over it."],
        ["state-dir", None, None, "Folder of this daemon's database, journal, sockets, consoles and certificates."],
        ["database", None, None, "SQLAlchemy URL of the records [an SQLite file in the state folder]."],
        ["users", None, None, "File of user names and password hashes [users in the state folder]."],
        ["upstream", None, None, "Toolstack to work beside: https://HOST[:PORT][#sha256=HEX] or unix:/PATH [none]."],
        ["domains", None, None, "Hypervisor: qemu, or xen in the dom0 of a Xen host [qemu]."],
    ]
    optFlags = [["show-config", None, "Print the settings that hold, as a TOML file, and end."]]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._more: list[dict[str, Any]] = []
        self._listen: list[str] = []
        self._auth: list[str] = []

    def opt_listen(self, endpoint: str) -> None:
        """Twisted endpoint to serve on; "tls:" in front serves https with this host's own certificate. Repeatable.
        [tcp:8080:interface=127.0.0.1]"""
        self._listen.append(endpoint)

    def opt_auth(self, checker: str) -> None:
        """Who may log in: file:PATH, a file of users; unix:NAMES, accounts of this machine [root]; or another kind of
        twisted.cred's plug-ins. Repeatable. [the file of users]"""
        from .xenapi.checkers import UnknownChecker, check_text

        try:
            check_text(checker)
        except UnknownChecker as error:
            raise UsageError(str(error)) from None
        self._auth.append(checker)

    def opt_schemes(self, schemes: str) -> None:
        """Schemes that URIs are offered with, in this order, separated by commas. http moves memory and disks in
        clear. [https]"""
        self._more.append({"schemes": schemes})

    def opt_addresses(self, addresses: str) -> None:
        """Addresses that URIs are offered on, separated by commas [those that --listen names]."""
        self._more.append({"addresses": addresses})

    def opt_set(self, text: str) -> None:
        """NAME=VALUE: any setting of the file, for example heartbeat_interval=5. Repeatable."""
        try:
            self._more.append(setting(text))
        except ConfigError as error:
            raise UsageError(str(error)) from None

    def postOptions(self) -> None:
        try:
            self.config_value = self._config()
        except ConfigError as error:
            raise UsageError(str(error)) from None
        if self["show-config"]:
            self._show()

    def _config(self) -> Config:
        file = load(Path(self["config"])) if self["config"] else {}
        names = ("state-dir", "database", "users", "upstream", "domains")
        said = {name.replace("-", "_"): self[name] for name in names if self[name] is not None}
        if self._listen:
            said["listen"] = tuple(self._listen)
        if self._auth:
            said["auth"] = tuple(self._auth)
        return build(merge(file, said, *self._more))

    def _show(self) -> NoReturn:
        sys.stdout.write(show(self.config_value))
        raise SystemExit(0)


class DaemonService(Service):
    """Opens the daemon once the reactor runs, closes it before the reactor stops. A daemon that cannot be
    opened ends the process: `problem` then is a sentence. `closed` never fails."""

    log = Logger(namespace="xapi_migrate.daemon")

    def __init__(self, config: Config, reactor: Any) -> None:
        self.config = config
        self.problem = ""
        self._reactor = reactor
        self._opening: defer.Deferred[None] | None = None
        self._daemon: Daemon | None = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        own_process.prepare()
        self._reactor.callWhenRunning(self._begin)

    def stopService(self) -> defer.Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return defer.Deferred.fromCoroutine(self._close())

    def _begin(self) -> None:
        if self.running:
            self._opening = defer.Deferred.fromCoroutine(self._open())
            self._opening.addErrback(self._failed)

    async def _open(self) -> None:
        from .daemon import open_daemon

        self._daemon = await open_daemon(self.config, self._reactor)

    def _failed(self, failure: Failure) -> None:
        if not self.running and failure.check(defer.CancelledError):
            return
        if failure.check(MigrateError, ConfigError, OSError, CannotListenError, FolderTaken):
            self.problem = f"The daemon could not start: {failure.value}"
            self.log.critical("{problem}", problem=self.problem)
        else:
            self.problem = f"The daemon could not start: {failure.getErrorMessage()} ({type(failure.value).__name__})"
            self.log.failure("{problem}", failure, problem=self.problem)
        if self.running:
            self._reactor.stop()

    async def _close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await opening
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            try:
                await daemon.close()
            except Exception:
                self.log.failure("The daemon did not close cleanly.")


def makeService(options: Options, reactor: Any = None) -> DaemonService:
    """The daemon as a service of `reactor`, Twisted's if none is given, whose time is made steady."""
    if reactor is None:
        from twisted.internet import reactor
    make_steady(reactor)
    Factory.noisy = False  # or each connection to a child process is two lines in the log
    return DaemonService(options.config_value, reactor)
