"""allowed_operations against what is allowed: in every state each call is made, and it must be refused exactly if its
operation is not listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted

from tests.toolstack.small_host import SmallHost, small_host
from xapi_migrate.errors import MigrateError

CALLS: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {
    "VM": {
        "start": ("VM.start", (False, False)),
        "clean_shutdown": ("VM.clean_shutdown", ()),
        "hard_shutdown": ("VM.hard_shutdown", ()),
        "clean_reboot": ("VM.clean_reboot", ()),
        "hard_reboot": ("VM.hard_reboot", ()),
        "pause": ("VM.pause", ()),
        "unpause": ("VM.unpause", ()),
        "destroy": ("VM.destroy", ()),
        "suspend": ("VM.suspend", ()),
        "resume": ("VM.resume", (False, False)),
        "snapshot": ("VM.snapshot", ("a", [])),
        "clone": ("VM.clone", ("a",)),
        "checkpoint": ("VM.checkpoint", ("a",)),
    },
    "VDI": {
        "destroy": ("VDI.destroy", ()),
        "resize": ("VDI.resize", ("1048576",)),
        "update": ("VDI.update", ()),
        "snapshot": ("VDI.snapshot", ({},)),
        "clone": ("VDI.clone", ({},)),
    },
    "disk": {"plug": ("VBD.plug", ()), "unplug": ("VBD.unplug", ()), "eject": ("VBD.eject", ())},
    "drive": {"eject": ("VBD.eject", ()), "insert": ("VBD.insert", ("medium",)), "plug": ("VBD.plug", ())},
    "empty drive": {"eject": ("VBD.eject", ()), "insert": ("VBD.insert", ("medium",)), "plug": ("VBD.plug", ())},
    "VIF": {"plug": ("VIF.plug", ()), "unplug": ("VIF.unplug", ())},
    "SR": {
        "scan": ("SR.scan", ()),
        "update": ("SR.update", ()),
        "forget": ("SR.forget", ()),
        "destroy": ("SR.destroy", ()),
        "vdi_create": ("VDI.create", ()),
        "plug": ("PBD.plug", ()),
        "unplug": ("PBD.unplug", ()),
    },
}  # fmt: skip
AGAIN = {("SR", "plug"), ("SR", "unplug")}
"""Calls that are taken, without effect, where there is nothing to be done."""

STATES = ("Halted", "Running", "Paused", "busy", "halted and busy", "blocked", "a template", "SR unplugged")


@attrs.define
class Made:
    """A host in one of the states, and what the calls are made on."""

    here: SmallHost
    refs: dict[str, str]

    @classmethod
    async def make(cls, here: SmallHost, state: str) -> Made:
        sr = await here.sr()
        vm = await here.vm(sr)
        records = here.server.records
        [vdi] = records.get("SR", sr)["VDIs"]
        [disk] = records.get("VM", vm)["VBDs"]
        other = await here.call("SR.create", here.host, {}, 0, "ISOs", "", "memory", "iso", False, {})
        medium = await here.call("VDI.create", {"SR": other, "virtual_size": "1000", "name_label": "medium"})
        drive = await here.call("VBD.create", {"VM": vm, "VDI": medium, "userdevice": "3", "type": "CD"})
        empty = await here.call("VBD.create", {"VM": vm, "userdevice": "4", "type": "CD"})
        [network] = records.refs("network")
        vif = await here.call("VIF.create", {"VM": vm, "network": network, "device": "0"})
        [pbd] = records.get("SR", sr)["PBDs"]
        if state in ("Running", "Paused", "busy"):
            await here.call("VM.start", vm, state == "Paused", False)
        if state in ("busy", "halted and busy"):
            here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:task")
        if state == "blocked":
            records.update("VM", vm, blocked_operations=dict.fromkeys(("start", "destroy"), "not today"))
        if state == "a template":
            records.update("VM", vm, is_a_template=True)
        if state == "SR unplugged":
            await here.call("PBD.unplug", pbd)
        refs = {
            "VM": vm, "VDI": vdi, "disk": disk, "drive": drive, "empty drive": empty, "VIF": vif, "SR": sr, "PBD": pbd,
            "medium": medium, "host": here.host,
        }  # fmt: skip
        return cls(here, refs)

    def listed(self, kind: str) -> list[str]:
        cls = "VBD" if kind in ("disk", "drive", "empty drive") else kind
        return list(self.here.get(cls, self.refs[kind])["allowed_operations"])

    async def refused(self, kind: str, operation: str) -> list[str]:
        """What the call says against it; [] if it is let do."""
        method, params = CALLS[kind][operation]
        params = tuple(self.refs.get(param, param) if isinstance(param, str) else param for param in params)
        target = self.refs[kind]
        if method == "VDI.create":
            arguments: tuple[Any, ...] = ({"SR": target, "virtual_size": "1000", "name_label": "new"},)
        elif method.startswith("PBD."):
            arguments = (self.refs["PBD"],)
        else:
            arguments = (target, *params)
        try:
            await self.here.call(method, *arguments)
        except MigrateError as error:
            return error.failure()
        return []


# what a VM lacks elsewhere is told by its start
@pytest.mark.parametrize(
    ("kind", "state"),
    [(kind, state) for kind in CALLS for state in STATES if (kind, state) != ("VM", "SR unplugged")],
)
@pytest_twisted.ensureDeferred
async def test_what_is_listed_is_done_and_what_is_not_is_refused(tmp_path: Path, kind: str, state: str) -> None:
    async with small_host(tmp_path) as here:
        made = await Made.make(here, state)
        listed = [operation for operation in CALLS[kind] if operation in made.listed(kind)]
        for operation in set(CALLS[kind]) - set(listed):
            if (kind, operation) not in AGAIN:
                assert await made.refused(kind, operation), f"{operation} of {kind}, {state}: done, and is not listed"
    for operation in listed:
        folder = tmp_path / operation
        folder.mkdir()
        async with small_host(folder) as here:
            made = await Made.make(here, state)
            said = await made.refused(kind, operation)
            assert said == [], f"{operation} of {kind}, {state}: listed, and refused"


@pytest_twisted.ensureDeferred
async def test_lists_follow_at_once(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        made = await Made.make(here, "Halted")
        vm = made.refs["VM"]
        assert made.listed("VM") == ["start", "migrate_send", "destroy"]
        assert made.listed("VDI")[0] == "destroy" and "mirror" in made.listed("VDI")
        assert made.listed("disk") == ["attach"] and made.listed("VIF") == ["attach"]
        assert {"unplug", "forget", "destroy"} <= set(made.listed("SR"))
        await here.call("VM.start", vm, False, False)
        assert "destroy" not in made.listed("VDI") and "mirror" in made.listed("VDI")
        assert made.listed("disk") == made.listed("VIF") == []
        assert not {"unplug", "forget", "destroy"} & set(made.listed("SR"))
        here.toolstack.begin_operation(vm, "migrate_send", "OpaqueRef:task")
        assert made.listed("VM") == made.listed("VDI") == []
        assert here.get("VM", vm)["current_operations"] == {"OpaqueRef:task": "migrate_send"}
        here.toolstack.end_operation(vm, "OpaqueRef:task")
        await here.call("VM.hard_shutdown", vm)
        here.server.records.update("VM", vm, platform={**here.get("VM", vm)["platform"], "nomigrate": "true"})
        assert made.listed("VM") == ["start", "destroy"]
        await here.call("VM.destroy", vm)
        assert "mirror" not in made.listed("VDI")
        assert made.listed("host") == ["evacuate", "vm_migrate", "vm_start"]
        here.server.records.update("host", here.host, enabled=False)
        assert made.listed("host") == ["enable", "evacuate", "vm_migrate"]
        assert here.get("pool", here.server.records.refs("pool")[0])["allowed_operations"] == []


@pytest_twisted.ensureDeferred
async def test_devices_are_refused_by_the_codes_that_clients_know(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        made = await Made.make(here, "Halted")
        vm, disk, drive, empty = (made.refs[name] for name in ("VM", "disk", "drive", "empty drive"))

        async def said(method: str, *params: Any) -> list[str]:
            with pytest.raises(MigrateError) as caught:
                await here.call(method, *params)
            return caught.value.failure()

        assert await said("VBD.plug", disk) == ["VM_BAD_POWER_STATE", vm, "running", "halted"]
        assert await said("VBD.unplug", disk) == ["DEVICE_ALREADY_DETACHED", disk]
        assert await said("VBD.insert", drive, made.refs["medium"]) == ["VBD_NOT_EMPTY", drive]
        assert await said("VBD.eject", empty) == ["VBD_IS_EMPTY", empty]
        assert await said("VBD.eject", disk) == ["VBD_NOT_REMOVABLE_MEDIA", disk]
        written = {"VM": vm, "VDI": made.refs["medium"], "userdevice": "9", "type": "CD", "mode": "RW"}
        assert await said("VBD.create", written) == ["VBD_CDS_MUST_BE_READONLY"]
        sr = made.refs["SR"]
        for method, params in (("VM.snapshot", ("a", [])), ("VM.checkpoint", ("a",)), ("VM.clone", ("a",))):
            assert await said(method, vm, *params) == ["SR_OPERATION_NOT_SUPPORTED", sr]
        await here.call("VBD.eject", drive)
        await here.call("VBD.insert", empty, made.refs["medium"])
        assert (here.get("VBD", drive)["empty"], here.get("VBD", empty)["empty"]) == (True, False)
        await here.call("VM.start", vm, False, False)
        assert await said("VBD.plug", disk) == ["DEVICE_ALREADY_ATTACHED", disk]
        assert (await said("VBD.unplug", disk))[0] == "OPERATION_NOT_ALLOWED"
        assert (await said("VIF.unplug", made.refs["VIF"]))[0] == "OPERATION_NOT_ALLOWED"
        assert await said("VBD.eject", empty) == ["VM_BAD_POWER_STATE", vm, "halted", "running"]
