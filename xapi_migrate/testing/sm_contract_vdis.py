"""The contract of an SR: its VDIs, as one host sees them."""

from __future__ import annotations

import os

from xapi_migrate.errors import (
    InvalidValue,
    MigrateError,
    SrFull,
    SrNotAttached,
    VdiInUse,
    VdiMissing,
)
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.interfaces import (
    IShowsImages,
    Purpose,
)
from xapi_migrate.testing.sm_kit import MIB, SIZE, SRKit, new_source, new_uuid, raises


async def check_sr_must_be_attached(kit: SRKit) -> None:
    """A detached SR refuses work; attach and detach may be repeated."""
    await kit.ours.detach()
    await kit.ours.detach()
    await raises(SrNotAttached, kit.ours.scan())
    await kit.ours.attach()
    await kit.ours.attach()
    assert await kit.ours.scan() == []


async def check_create_and_destroy(kit: SRKit) -> None:
    """A VDI is there once created, counted, gone once destroyed; both may be repeated."""
    vdi, before = new_uuid(), await kit.ours.stat()
    for _ in range(2):
        assert (await kit.ours.vdi_create(vdi, SIZE)).virtual_size == SIZE
    assert [(info.uuid, info.virtual_size) for info in await kit.ours.scan()] == [(vdi, SIZE)]
    assert (await kit.ours.stat()).free <= before.free
    for _ in range(2):
        await kit.ours.vdi_destroy(vdi)
    assert await kit.ours.scan() == []


async def check_full(kit: SRKit) -> None:
    """No room is SrFull, and nothing is left of the attempt."""
    failure = await raises(SrFull, kit.ours.vdi_create(new_uuid(), kit.most + MIB))
    assert failure.requested == kit.most + MIB and failure.available <= kit.most
    assert await kit.ours.scan() == []


async def check_a_view(kit: SRKit) -> None:
    """Where a VDI can be seen as a file: what is written there is in the VDI, and nothing of it stays attached."""
    if not IShowsImages.providedBy(kit.ours):
        return
    shows: IShowsImages = IShowsImages(kit.ours)
    vdi = new_uuid()
    await raises(VdiMissing, shows.view_open(vdi))
    await shows.view_close(vdi)
    await kit.ours.vdi_create(vdi, SIZE)
    for number in range(2):
        path = await shows.view_open(vdi)
        assert path == await shows.view_open(vdi)
        descriptor = os.open(path, os.O_RDWR)
        try:
            assert os.pread(descriptor, 5, MIB) == (b"first" if number else bytes(5))
            os.pwrite(descriptor, b"first", MIB)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        await shows.view_close(vdi)
        await shows.view_close(vdi)
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.ours.vdi_activate(vdi)
    assert await kit.read(attachment, MIB, 512) == b"first".ljust(512, b"\0")
    await kit.ours.vdi_detach(vdi)
    await kit.ours.vdi_destroy(vdi)


async def check_missing(kit: SRKit) -> None:
    """A VDI that is not there cannot be attached, exported or copied."""
    vdi = new_uuid()
    await raises(VdiMissing, kit.ours.vdi_attach(vdi, Purpose.DOMAIN))
    await raises(VdiMissing, kit.ours.vdi_get_url(vdi, "m", "127.0.0.1"))
    await raises(MigrateError, kit.ours.vdi_activate(vdi))
    await kit.ours.vdi_deactivate(vdi)
    await kit.ours.vdi_detach(vdi)


async def check_gate(kit: SRKit) -> None:
    """Before activate and after deactivate a guest's writes are refused; between them they are kept. The same
    attachment works again after a rollback."""
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    assert attachment == await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    assert attachment.virtual_size == SIZE
    await raises(OSError, kit.write(attachment, 0, b"early" * 1024))
    for number in (1, 2):
        for _ in range(2):
            await kit.ours.vdi_activate(vdi)
        await kit.write(attachment, number * MIB, bytes([number]) * 4096)
        for _ in range(2):
            await kit.ours.vdi_deactivate(vdi)
        await raises(OSError, kit.write(attachment, number * MIB, b"late" * 1024))
    await kit.ours.vdi_activate(vdi)
    assert await kit.read(attachment, 0, 4096) == bytes(4096)
    for number in (1, 2):
        assert await kit.read(attachment, number * MIB, 4096) == bytes([number]) * 4096
    for _ in range(2):
        await kit.ours.vdi_detach(vdi)


async def check_in_use(kit: SRKit) -> None:
    """What is attached is neither destroyed nor is its SR detached."""
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    await raises(VdiInUse, kit.ours.vdi_destroy(vdi))
    await raises(VdiInUse, kit.ours.detach())
    await kit.ours.vdi_detach(vdi)
    await kit.ours.vdi_destroy(vdi)


async def check_resize(kit: SRKit) -> None:
    """A VDI that nobody uses grows, keeps its content and reads as zeroes behind it; it never shrinks. Repeatable."""
    vdi, attachment = await new_source(kit, b"once")
    await raises(VdiInUse, kit.ours.vdi_resize(vdi, 2 * SIZE))
    await kit.ours.vdi_detach(vdi)
    if not kit.resizes:
        await raises(SrOperationNotSupported, kit.ours.vdi_resize(vdi, 2 * SIZE))
        return
    await raises(InvalidValue, kit.ours.vdi_resize(vdi, SIZE - MIB))
    await raises(SrFull, kit.ours.vdi_resize(vdi, kit.most + 2 * SIZE))
    for _ in range(2):
        assert (await kit.ours.vdi_resize(vdi, 2 * SIZE)).virtual_size == 2 * SIZE
    assert [info.virtual_size for info in await kit.ours.scan()] == [2 * SIZE]
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    assert attachment.virtual_size == 2 * SIZE
    await kit.ours.vdi_activate(vdi)
    assert await kit.read(attachment, SIZE - MIB, 4096) == b"once" * 1024
    assert await kit.read(attachment, 2 * SIZE - 4096, 4096) == bytes(4096)
    await kit.write(attachment, 2 * SIZE - 4096, b"late" * 1024)
    await kit.ours.vdi_detach(vdi)
