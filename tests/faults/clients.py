"""Who asks for a migration, in each of the ways that there are. The asking is done by a thread or a process, since the
daemon may stop or die before it answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import XenAPI

from xapi_migrate.lab.host import USER, LabHost
from xapi_migrate.toolstack.destination import OFFER

if TYPE_CHECKING:
    from tests.faults.ground import Ground


class Client:
    """VM.receive and VM.migrate over the XenAPI library, by way of the link's relay. `told` is the task's record when
    all is over, {} if the client never came to know it."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}
        self._task = ""
        self._session: Any = None
        self._sender: LabHost | None = None
        self._begun = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, ground: Ground, uuid: str) -> None:
        """Ask for it; the answer may never come."""
        self._sender = ground.sender
        begin = self.prepare(ground, uuid)
        self.beside(begin)

    def prepare(self, ground: Ground, uuid: str) -> Callable[[], None]:
        """What comes before the sender is asked, and then what asks it."""
        uris = ground.link.requests.uris(ground.world.receive(ground.label, ground.receiver))

        def begin() -> None:
            api = self._log_in(ground.sender)
            self._task = api.Async.VM.migrate(api.VM.get_by_uuid(uuid), uris, {}, {})
            self._begun.set()

        return begin

    def cancel(self) -> None:
        """The answer comes when the sender goes on."""
        self._begun.wait(10)
        self.beside(lambda: self._session.xenapi.task.cancel(self._task))
        time.sleep(0.1)  # until it is on its way

    def end(self) -> None:
        """Wait for the threads, and ask what became of the task."""
        for thread in self._threads:
            thread.join(20)
        if self._task and self._sender is not None and self._sender.alive:
            api = self._log_in(self._sender)
            until = time.monotonic() + 20
            while (record := api.task.get_record(self._task))["status"] == "pending" and time.monotonic() < until:
                time.sleep(0.05)
            self.told = record

    def _log_in(self, host: LabHost) -> Any:
        self._session = XenAPI.Session(host.url)
        self._session.xenapi.login_with_password(USER, host.password, "2.23", "faults")
        return self._session.xenapi

    def beside(self, work: Callable[[], object]) -> None:
        """Do it in a thread, which `end` waits for."""

        def quietly() -> None:
            try:
                work()
            except Exception as lost:  # the daemon was killed
                print(f"the client: {lost}")

        thread = threading.Thread(target=quietly, daemon=True)
        self._threads.append(thread)
        thread.start()


class ModernClient(Client):
    """host.migrate_receive and VM.migrate_send."""

    def prepare(self, ground: Ground, uuid: str) -> Callable[[], None]:
        with ground.world.session(ground.receiver) as there:
            [host] = there.host.get_all()
            network = there.network.get_all()[0]
            destination = there.host.migrate_receive(host, network, {})
            sr = there.SR.get_by_uuid(ground.receiver.srs["local-raw"])
        destination[OFFER] = " ".join(ground.link.requests.uris(destination[OFFER].split()))

        def begin() -> None:
            api = self._log_in(ground.sender)
            vm = api.VM.get_by_uuid(uuid)
            vdis = {api.VBD.get_VDI(vbd): sr for vbd in api.VM.get_VBDs(vm)}
            self._task = api.Async.VM.migrate_send(vm, destination, True, vdis, {}, {})
            self._begun.set()

        return begin


class Command(Client):
    """`xapi-migrate vm-migrate`, which can be killed. It goes past the relay."""

    process: subprocess.Popen[bytes] | None = None

    def prepare(self, ground: Ground, uuid: str) -> Callable[[], None]:
        sender, receiver = ground.sender, ground.receiver
        secrets = {"XAPI_MIGRATE_PASSWORD": sender.password, "XAPI_MIGRATE_TO_PASSWORD": receiver.password}
        argv = [sys.executable, "-m", "xapi_migrate.cli", "vm-migrate", uuid, "--url", sender.url]
        argv += ["--to-url", receiver.url, "--sr", receiver.srs["local-raw"]]

        def begin() -> None:
            self.process = subprocess.Popen(
                argv, env={**os.environ, **secrets}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )

        return begin

    def kill(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, "it has ended already"
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
