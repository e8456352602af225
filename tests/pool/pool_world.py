"""A lab of one pool, and what one looks at there."""

from __future__ import annotations

import time
from typing import Any

from tests.system.world import World
from xapi_migrate.lab.host import LabHost
from xapi_migrate.lab.provisioning import Guest, start_guest
from xapi_migrate.processes import remains

SMALL = Guest(memory=32, disk=32, second_disk=1, filled=1)


class PoolWorld(World):
    def ref(self, host: LabHost) -> str:
        with self.session(host) as api:
            [ref] = api.host.get_by_name_label(host.name)
            return str(ref)

    def both_live(self) -> None:
        """Each member takes the other for alive, and has been heard of it."""
        for host in self.lab.hosts:
            with self.session(host) as api:
                self.wait(
                    lambda api=api: all(record["live"] for record in api.host_metrics.get_all_records().values()),  # type: ignore[misc]
                    "a member is not taken for alive",
                )

    def empty(self) -> None:
        for uuid in self.vms(self.source):
            with self.session(self.source) as api:
                vm = api.VM.get_by_uuid(uuid)
                where = api.VM.get_resident_on(vm)
            self.destroy(self.destination if where == self.ref(self.destination) else self.source, uuid)

    def small_guests(self, number: int, host: LabHost, label: str = "shared") -> list[str]:
        """The uuids of so many running guests, as small as can be."""
        with host.server.session() as session:
            sr = session.xenapi.SR.get_by_uuid(host.srs[label])
            return [start_guest(session, sr, self.lab.sr_location(host, label), SMALL)[1] for _ in range(number)]

    def record(self, uuid: str, host: LabHost) -> dict[str, Any]:
        """The VM's record as this host has it; there must be no other VM."""
        with self.session(host) as api:
            record: dict[str, Any] = api.VM.get_record(api.VM.get_by_uuid(uuid))
            return record

    def resident(self, uuid: str) -> LabHost | None:
        """Where the VM runs, as both hosts say once they agree."""
        found: set[str] = set()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            found = {self.record(uuid, host)["resident_on"] for host in self.lab.hosts}
            if len(found) == 1:
                break
            time.sleep(0.1)
        [ref] = found
        return next((host for host in self.lab.hosts if self.ref(host) == ref), None)

    def left_on(self, host: LabHost) -> list[str]:
        """Processes, mounts and journals of VMs; files in its own SRs."""
        left = [f"process {path}" for path in remains.children(host.state_dir).values() if path.name != "tgt"]
        left += remains.mounts(host.state_dir)
        for label in ("local-raw", "local-qcow2"):
            left += [str(path) for path in self.lab.sr_location(host, label).glob("*") if path.is_file()]
        for folder in ("journal", "motions", "suspends"):
            left += [f"journal {path.name}" for path in (host.state_dir / folder).glob("*")]
        return left

    def is_left(self, host: LabHost) -> None:
        """Soon nothing is left of any VM on this host."""
        self.wait(lambda: not self.left_on(host), f"left on {host.name}: {self.left_on(host)}", 15)
