"""Suspended VMs of a toolstack are sent with their image, to where it can be resumed and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
import XenAPI
from twisted.internet import threads

from tests.upstream.beside import Beside, Kept, beside, halted_vm, offer, session_of, world
from tests.upstream.toolstacks import SimulatedToolstack, toolstack
from tests.xenapi.two_servers import DISK, until
from xapi_migrate.errors import RemoteError
from xapi_migrate.testing.fake_sm import FakeLuns
from xapi_migrate.upstream.images import can_resume, image_form
from xapi_migrate.upstream.lease import BLOCKED

SOFTWARE = {"product_brand": "XCP-ng", "product_version": "8.3.0", "xen": "4.17.5-3"}
IMAGE = b"image of its memory"


async def suspended_vm(source: Any, software: dict[str, str]) -> tuple[str, str, list[str]]:
    """ref, uuid, VDIs; the image is the last."""
    database = source.xapi.database
    vm, uuid, vdis = await halted_vm(source)
    sr = source.records.get("VDI", vdis[0])["SR"]
    image = database.create("VDI", SR=sr, virtual_size=DISK, type="suspend", managed=True, name_label="Suspend image")
    image_uuid = source.records.get("VDI", image)["uuid"]
    database.update("VDI", image, location=image_uuid)
    [storage] = [one.storage for one in source.disks.values()]
    storage.disks[image_uuid] = bytearray(DISK)
    storage.disks[image_uuid][: len(IMAGE)] = IMAGE
    database.update("VM", vm, power_state="Suspended", suspend_VDI=image)
    database.update("host", database.host, software_version=software)
    return vm, uuid, [*vdis, image]


@pytest.mark.parametrize("software", [SOFTWARE, {}])
@pytest_twisted.ensureDeferred
async def test_a_daemon_that_stands_alone_refuses_it(tmp_path: Path, software: dict[str, str]) -> None:
    async with world(tmp_path, "xapi") as (two, kept), beside(two.source, kept) as here:
        vm, _, vdis = await suspended_vm(two.source, software)
        before = two.source.records.get("VM", vm)
        uris = await offer(two.destination)
        there = two.destination
        dest = await there.client(lambda x: x.host.migrate_receive(there.host, there.network, {}))
        session = await threads.deferToThread(session_of, here)
        code = "VM_INCOMPATIBLE_WITH_THIS_HOST" if software else "OPERATION_NOT_ALLOWED"

        def work() -> None:
            for call in (
                lambda x: x.VM.migrate(vm, uris, {}, {}),
                lambda x: x.VM.migrate_send(vm, dest, False, {}, {}, {}),
            ):
                with pytest.raises(XenAPI.Failure, match=code) as refused:
                    call(session.xenapi)
                assert not software or "xcp-ng_8.3.0_4.17.5-3" in str(refused.value)

        await threads.deferToThread(work)
        assert two.source.records.get("VM", vm) == before
        assert set(two.source.records.refs("VDI")) == set(vdis)
        assert here.leases.known == {} and here.records.refs("VM") == []
        assert two.destination.records.refs("VM") == []
        await threads.deferToThread(session.xenapi.VM.resume, vm, False, False)


@attrs.define
class Pair:
    """Two toolstacks of xapi's, and a host beside each."""

    source: SimulatedToolstack
    destination: SimulatedToolstack
    here: Beside
    there: Beside
    sr: str


@asynccontextmanager
async def pair(tmp_path: Path, stalled: bool = False) -> AsyncIterator[Pair]:
    luns = FakeLuns()
    async with AsyncExitStack() as stack:
        sides: list[Any] = []
        for name in ("source", "destination"):
            found = await stack.enter_async_context(toolstack("xapi", tmp_path / name, luns))
            kept = Kept(tmp_path / f"beside-{name}", luns, stalled=stalled)
            sides.append((found, await stack.enter_async_context(beside(found, kept))))
        (source, here), (destination, there) = sides
        yield Pair(source, destination, here, there, await destination.new_sr())


async def uris_of(two: Pair, software: dict[str, str]) -> list[str]:
    database = two.destination.xapi.database
    database.update("host", database.host, software_version=software)
    session = await threads.deferToThread(session_of, two.there)
    return list(await threads.deferToThread(session.xenapi.VM.receive, two.sr, {}))


@pytest_twisted.ensureDeferred
async def test_it_moves_beside_another_toolstack_of_the_same_software(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        vm, uuid, _ = await suspended_vm(two.source, SOFTWARE)
        uris = await uris_of(two, {**SOFTWARE, "xen": "4.17.6-1"})
        session = await threads.deferToThread(session_of, two.here)
        await threads.deferToThread(session.xenapi.VM.migrate, vm, uris, {}, {})
        for cls in ("VM", "VBD", "VDI", "VIF"):
            assert two.source.records.refs(cls) == []
            assert two.here.records.refs(cls) == []
        assert two.here.leases.known == {}
        await until(lambda: not two.there.arrivals.known)
        [ref] = two.destination.records.refs("VM")
        arrived = two.destination.records.get("VM", ref)
        assert (arrived["uuid"], arrived["power_state"], arrived["is_a_template"]) == (uuid, "Suspended", False)
        assert arrived["blocked_operations"] == {}
        image = two.destination.records.get("VDI", arrived["suspend_VDI"])
        [storage] = [one.storage for one in two.destination.disks.values()]
        assert image["type"] == "suspend" and storage.disks[image["uuid"]].startswith(IMAGE)
        assert len(storage.disks) == 3
        session = await threads.deferToThread(session_of, two.there)
        await threads.deferToThread(session.xenapi.VM.resume, ref, False, False)


@pytest_twisted.ensureDeferred
async def test_it_is_given_up_when_the_other_toolstack_has_it(tmp_path: Path) -> None:
    """Imported and not yet locked: it goes there with its image and disks, and resumes where it was."""
    async with pair(tmp_path) as two:
        vm, _, vdis = await suspended_vm(two.source, SOFTWARE)
        uris = await uris_of(two, SOFTWARE)
        call, failed = two.there.client.call, []

        async def fails_once(method: str, *params: Any, **options: Any) -> Any:
            if method == "VM.set_blocked_operations" and not failed:
                [there] = two.destination.records.refs("VM")
                failed.append(two.destination.records.get("VM", there))
                raise RemoteError(["INTERNAL_ERROR", "x"], "INTERNAL_ERROR: x")
            return await call(method, *params, **options)

        two.there.client.call = fails_once  # type: ignore[method-assign]
        session = await threads.deferToThread(session_of, two.here)
        with pytest.raises(XenAPI.Failure, match="INTERNAL_ERROR"):
            await threads.deferToThread(session.xenapi.VM.migrate, vm, uris, {}, {})
        [imported] = failed
        assert (imported["power_state"], imported["is_a_template"]) == ("Suspended", True)
        await until(lambda: not two.there.arrivals.known, "it stays at the other toolstack")
        for cls in ("VM", "VBD", "VDI", "VIF"):
            assert two.destination.records.refs(cls) == []
        [storage] = [one.storage for one in two.destination.disks.values()]
        assert storage.disks == {}
        await until(lambda: not two.here.leases.known)
        assert set(two.source.records.refs("VDI")) == set(vdis)
        await threads.deferToThread(session.xenapi.VM.resume, vm, False, False)


@pytest.mark.parametrize(
    "other", [{**SOFTWARE, "xen": "4.17.4"}, {**SOFTWARE, "product_brand": "XenServer"}, {}],
)  # fmt: skip
@pytest_twisted.ensureDeferred
async def test_another_toolstacks_software_is_refused_before_anything_is_made(
    tmp_path: Path, other: dict[str, str]
) -> None:
    async with pair(tmp_path) as two:
        vm, _, _ = await suspended_vm(two.source, SOFTWARE)
        uris = await uris_of(two, other)
        session = await threads.deferToThread(session_of, two.here)
        with pytest.raises(XenAPI.Failure, match="VM_INCOMPATIBLE_WITH_THIS_HOST"):
            await threads.deferToThread(session.xenapi.VM.migrate, vm, uris, {}, {})
        assert two.destination.records.refs("VDI") == [] and two.there.records.refs("VM") == []
        assert two.source.records.get("VM", vm)["blocked_operations"] == {}
        await threads.deferToThread(session.xenapi.VM.resume, vm, False, False)


@pytest_twisted.ensureDeferred
async def test_it_is_neither_resumed_nor_shut_down_meanwhile(tmp_path: Path) -> None:
    async with pair(tmp_path, stalled=True) as two:
        vm, _, vdis = await suspended_vm(two.source, SOFTWARE)
        uris = await uris_of(two, SOFTWARE)
        session = await threads.deferToThread(session_of, two.here)
        task = await threads.deferToThread(session.xenapi.Async.VM.migrate, vm, uris, {}, {})
        await until(lambda: two.here.engine._outgoing)
        assert set(two.source.records.get("VM", vm)["blocked_operations"]) == set(BLOCKED)

        def work() -> None:
            x = session.xenapi
            for call in (lambda: x.VM.resume(vm, False, False), lambda: x.VM.hard_shutdown(vm)):
                with pytest.raises(XenAPI.Failure, match="OPERATION_BLOCKED"):
                    call()
            with pytest.raises(XenAPI.Failure, match="VDI_IN_USE"):
                x.VDI.destroy(vdis[-1])
            x.task.cancel(task)

        await threads.deferToThread(work)
        await until(lambda: not two.here.leases.known)
        assert two.source.records.get("VM", vm)["power_state"] == "Suspended"
        await threads.deferToThread(session.xenapi.VM.resume, vm, False, False)


@pytest_twisted.ensureDeferred
async def test_one_without_an_image_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path, "xapi") as (two, kept), beside(two.source, kept) as here:
        vm, _, _ = await suspended_vm(two.source, SOFTWARE)
        two.source.records.update("VM", vm, suspend_VDI="OpaqueRef:NULL")
        session = await threads.deferToThread(session_of, here)
        with pytest.raises(XenAPI.Failure, match="VM_HAS_NO_SUSPEND_VDI"):
            await threads.deferToThread(session.xenapi.VM.migrate, vm, await offer(two.destination), {}, {})


@pytest.mark.parametrize("software", [None, "x", [], {"product_brand": "a"}, {**SOFTWARE, "xen": ""}, {"xen": 5}])
def test_who_does_not_say_what_it_is_has_no_form(software: Any) -> None:
    assert image_form(software) == ""
    assert not can_resume("", "") and not can_resume(image_form(SOFTWARE), "")


def test_the_same_software_resumes_what_is_not_newer() -> None:
    mine = image_form(SOFTWARE)
    assert mine == "xcp-ng_8.3.0_4.17.5-3"
    for theirs in ("xcp-ng_8.3.0_4.17.5-3", "xcp-ng_8.2.1_4.13", "xcp-ng_8.3.0_4.9"):
        assert can_resume(mine, theirs)
    for theirs in ("xcp-ng_8.10.0_4.17.5-3", "xcp-ng_8.3.0_4.17.6", "xenserver_8.3.0_4.17.5", "qemu", "a_b_c_d"):
        assert not can_resume(mine, theirs)
    assert image_form({**SOFTWARE, "product_brand": "Citrix_Hyper visor"}) == "citrix-hyper-visor_8.3.0_4.17.5-3"
