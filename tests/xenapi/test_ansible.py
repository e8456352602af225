"""The calls of Ansible's XenServer modules, in their order, by the library that they use."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest_twisted
import XenAPI
from twisted.internet import threads

from tests.xenapi.two_servers import PASSWORD, USER, two_servers

NULL = "OpaqueRef:NULL"


def gather(api: Any, vm: str) -> dict[str, Any]:
    """gather_vm_params: every record that the modules look at."""
    record = api.VM.get_record(vm)
    vbds = [api.VBD.get_record(ref) for ref in record["VBDs"]]
    disks = []
    for vbd in vbds:
        vdi = api.VDI.get_record(vbd["VDI"]) if vbd["VDI"] != NULL else {}
        disks.append({**vbd, "VDI": {**vdi, "SR": api.SR.get_record(vdi["SR"])} if vdi else {}})
    vifs = []
    for ref in record["VIFs"]:
        vif = api.VIF.get_record(ref)
        vifs.append({**vif, "network": api.network.get_record(vif["network"])})
    affinity = api.host.get_record(record["affinity"]) if record["affinity"] != NULL else {}
    guest = api.VM_guest_metrics.get_record(record["guest_metrics"]) if record["guest_metrics"] != NULL else {}
    return {**record, "VBDs": disks, "VIFs": vifs, "affinity": affinity, "guest_metrics": guest}


def wait_for_task(api: Any, task: str) -> str:
    """wait_for_task: "" when it has ended well, the reason otherwise."""
    while (status := api.task.get_status(task).lower()) in ("pending", "cancelling"):
        time.sleep(0.1)
    problem = "" if status == "success" else status
    api.task.destroy(task)
    return problem


@pytest_twisted.ensureDeferred
async def test_it_connects_looks_and_changes_power_states(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        here = world.source
        vm = await here.new_vm(await here.new_sr(), running=False, disks=2)

        def work() -> None:
            session = XenAPI.Session(here.url, ignore_ssl=True)
            session.login_with_password(USER, PASSWORD, "2.9", "Ansible")
            api = session.xenapi
            [pool] = api.pool.get_all()
            assert api.SR.get_record(api.pool.get_default_SR(pool))["type"]
            host = api.session.get_this_host(session.handle)
            version = api.host.get_software_version(host)["product_version"]
            assert [int(part) for part in version.split(".")] >= [7, 2, 0]
            assert api.VM.get_by_name_label("demo") == [vm] and api.VM.get_by_name_label("none") == []
            assert api.VM.get_by_uuid(api.VM.get_uuid(vm)) == vm
            params = gather(api, vm)
            assert [disk["VDI"]["SR"]["name_label"] for disk in params["VBDs"]] == ["local", "local"]
            [vif] = params["VIFs"]
            assert vif["MAC"] and vif["network"]["name_label"] == "Pool-wide network"
            for state, change in (
                ("Running", lambda: api.VM.start(vm, False, False)),
                ("Paused", lambda: api.VM.pause(vm)),
                ("Running", lambda: api.VM.unpause(vm)),
                ("Running", lambda: api.VM.hard_reboot(vm)),
                ("Running", lambda: wait_for_task(api, api.Async.VM.clean_reboot(vm))),
                ("Halted", lambda: wait_for_task(api, api.Async.VM.clean_shutdown(vm))),
            ):
                assert not change()
                assert gather(api, vm)["power_state"] == state
            for ref in api.VM.get_VBDs(vm):
                vdi = api.VBD.get_VDI(ref)
                api.VBD.destroy(ref)
                api.VDI.destroy(vdi)
            api.VM.destroy(vm)
            session.logout()
            session("close")()

        await threads.deferToThread(work)
