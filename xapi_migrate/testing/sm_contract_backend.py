"""The contract of a storage backend by itself."""

from __future__ import annotations

from xapi_migrate.errors import (
    SrFull,
    VdiMissing,
)
from xapi_migrate.sm.interfaces import (
    IAttachesVDIs,
    ImageFormat,
    ImageLocation,
    ISRBackend,
)
from xapi_migrate.testing.sm_kit import MIB, SIZE, BackendFactory, new_uuid, raises


async def check_backend_vdi_life(make: BackendFactory) -> None:
    """Created, found by a second host, sized, located, destroyed; repeats change nothing."""
    backend, vdi = make(), new_uuid()
    await backend.attach()
    info = await backend.vdi_create(vdi, SIZE)
    assert info.uuid == vdi and info.virtual_size == SIZE
    assert (await backend.vdi_create(vdi, SIZE)).virtual_size == SIZE
    other = make()
    await other.attach()
    assert [(one.uuid, one.virtual_size) for one in await other.scan()] == [(vdi, SIZE)]
    for one in (other, backend, other):
        if IAttachesVDIs.providedBy(one):
            await one.vdi_attach(vdi)
    location = await other.vdi_location(vdi)
    if isinstance(location, ImageLocation):
        assert location.path.is_absolute(), f"{location.path} is not absolute"
    assert location == await backend.vdi_location(vdi)
    for one in (other, backend, backend):
        if IAttachesVDIs.providedBy(one):
            await one.vdi_detach(vdi)
    for _ in range(2):
        await backend.vdi_destroy(vdi)
    assert await other.scan() == []
    await raises(VdiMissing, other.vdi_location(vdi))
    await backend.detach()


async def check_backend_reads_as_zeroes(make: BackendFactory) -> None:
    """A new VDI shows nothing of what lay there before: a second one in the place of the first neither."""
    backend = make()
    await backend.attach()
    for _ in range(2):
        vdi = new_uuid()
        await backend.vdi_create(vdi, SIZE)
        if IAttachesVDIs.providedBy(backend):
            await backend.vdi_attach(vdi)
        location = await backend.vdi_location(vdi)
        if location.format is ImageFormat.RAW and isinstance(location, ImageLocation):
            with location.path.open("r+b") as image:
                assert image.read(SIZE) == bytes(SIZE)
                image.seek(0)
                image.write(b"secret" * (SIZE // 6))
        if IAttachesVDIs.providedBy(backend):
            await backend.vdi_detach(vdi)
        await backend.vdi_destroy(vdi)


async def check_backend_after_a_restart(make: BackendFactory) -> None:
    """Images that are attached to a host are so still when its daemon has been restarted, but for those that nobody
    uses any more."""
    backend, used, unused = make(), new_uuid(), new_uuid()
    await backend.attach()
    if not IAttachesVDIs.providedBy(backend):
        return  # nothing to attach
    for vdi in (used, unused):
        await backend.vdi_create(vdi, SIZE)
        await backend.vdi_attach(vdi)
    restarted = make()
    await restarted.attach()
    await restarted.vdi_keep([used])  # type: ignore[attr-defined]
    assert await _is_there(restarted, used)
    assert not await _is_there(restarted, unused)
    await restarted.vdi_detach(used)  # type: ignore[attr-defined]
    assert not await _is_there(restarted, used)
    for vdi in (used, unused):
        await restarted.vdi_destroy(vdi)


async def _is_there(backend: ISRBackend, vdi: str) -> bool:
    location = await backend.vdi_location(vdi)
    assert isinstance(location, ImageLocation)
    return location.path.exists()


async def check_backend_odd_size(make: BackendFactory) -> None:
    """Sizes are rounded up to whole sectors."""
    backend = make()
    await backend.attach()
    vdi = new_uuid()
    assert (await backend.vdi_create(vdi, SIZE + 1)).virtual_size == SIZE + 512
    assert [info.virtual_size for info in await backend.scan()] == [SIZE + 512]
    await backend.vdi_destroy(vdi)


async def check_backend_full(make: BackendFactory) -> None:
    """What does not fit is refused, and leaves nothing."""
    backend = make()
    await backend.attach()
    stat = await backend.stat()
    assert 64 * MIB <= stat.free <= stat.total
    failure = await raises(SrFull, backend.vdi_create(new_uuid(), stat.free + MIB * 1024))
    assert failure.requested > failure.available
    assert await backend.scan() == []


async def check_backend_nonce(make: BackendFactory) -> None:
    """A text left by one host is read by another, and goes when it is emptied."""
    backend, name = make(), new_uuid()
    await backend.attach()
    other = make()
    await other.attach()
    assert await other.nonce_read(name) == ""
    for value in ("one", "two"):
        await backend.nonce_write(name, value)
        assert await other.nonce_read(name) == value
    for _ in range(2):
        await backend.nonce_write(name, "")
    assert await other.nonce_read(name) == ""
    assert await other.scan() == []
