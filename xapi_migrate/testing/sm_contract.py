"""The contract of storage: what every ISR and every ISRBackend does. The author of a backend runs these.

Plain coroutines that raise AssertionError; `SR_CHECKS` and `BACKEND_CHECKS` list them for a test runner's
parametrisation. Each gets a fresh kit.
"""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs

from xapi_migrate.errors import (
    HandleInvalid,
    InvalidValue,
    MigrateError,
    SrFull,
    SrNotAttached,
    VdiInUse,
    VdiMissing,
)
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.interfaces import (
    ISR,
    Attachment,
    CopyState,
    CopyStatus,
    IAttachesVDIs,
    ImageFormat,
    ImageLocation,
    IShowsImages,
    ISRBackend,
    Purpose,
    SameDiskProof,
)

MIB = 1 << 20
SIZE = 8 * MIB
_E = TypeVar("_E", bound=Exception)


@attrs.frozen
class SRKit:
    """`ours` and `theirs`: attached SRs of two hosts, at least 64 MiB free in each. `ours` has at most `most` bytes
    free. `write` and `read` are a guest's I/O on an attachment of `ours` or `theirs` (write raises OSError when it is
    refused); `wait` lets that many seconds pass for the copies. `resizes`: whether VDIs of `ours` can grow."""

    ours: ISR
    theirs: ISR
    most: int
    write: Callable[[Attachment, int, bytes], Awaitable[None]]
    read: Callable[[Attachment, int, int], Awaitable[bytes]]
    wait: Callable[[float], Awaitable[None]]
    resizes: bool = True


def new_uuid() -> str:
    return str(uuids.uuid4())


async def raises(error: type[_E], call: Awaitable[object]) -> _E:
    """The error that the call must end with."""
    try:
        await call
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


async def state_of(kit: SRKit, ref: str, wanted: CopyState) -> CopyStatus:
    """Wait, a minute at most, until a copy of `ours` is there."""
    for _ in range(1200):
        status = await kit.ours.copy_state(ref)
        if status.state is wanted:
            return status
        if status.state in (CopyState.FAILED, CopyState.FINISHED):
            break
        await kit.wait(0.05)
    raise AssertionError(f"copy {ref} is {status}, not {wanted.value}")


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
    vdi, attachment = await _source(kit, b"once")
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


async def _source(kit: SRKit, content: bytes) -> tuple[str, Attachment]:
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    attachment = await kit.ours.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.ours.vdi_activate(vdi)
    for offset in range(0, SIZE, MIB):
        await kit.write(attachment, offset, content * (4096 // len(content)))
    return vdi, attachment


async def _received(kit: SRKit, vdi: str, offset: int) -> bytes:
    attachment = await kit.theirs.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.theirs.vdi_activate(vdi)
    content = await kit.read(attachment, offset, 4096)
    await kit.theirs.vdi_detach(vdi)
    return content


async def check_copy_of_a_running_disk(kit: SRKit) -> None:
    """The whole of it: URL, copy, ready, guest writes, deactivate, finished, close, equal. The receiver's domain
    is attached, gate shut, while the LUN is still written to."""
    vdi, attachment = await _source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1")
    assert (
        url.url.startswith(("iscsi://127.0.0.1:", "nbds://127.0.0.1:"))
        and len(url.password) >= 32
        and url.password not in repr(url)
    )
    assert await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1") == url
    for _ in range(2):
        await kit.ours.vdi_copy(vdi, url, "ref", None)
    await raises(VdiInUse, kit.ours.vdi_copy(vdi, url, "another", None))
    await state_of(kit, "ref", CopyState.READY)
    await kit.write(attachment, 3 * MIB, b"late" * 1024)
    waiting = await kit.theirs.vdi_attach(fresh, Purpose.DOMAIN)
    await raises(OSError, kit.write(waiting, 0, b"never" * 1024))
    await kit.ours.vdi_deactivate(vdi)
    status = await kit.ours.copy_state("ref")
    assert status.state is CopyState.FINISHED and not status.same_disk and status.error == ""
    assert status.copied == status.total > 0
    for _ in range(2):
        await kit.theirs.vdi_close_url(fresh, "m")
    assert await _received(kit, fresh, 3 * MIB) == b"late" * 1024
    assert await _received(kit, fresh, 5 * MIB) == b"once" * 1024
    assert await _received(kit, fresh, 5 * MIB + 65536) == bytes(4096)
    await kit.ours.vdi_detach(vdi)
    await kit.ours.copy_cancel("ref")


async def check_encrypted_copy(kit: SRKit) -> None:
    """Where the offer is https the disk's content crosses the network encrypted; the key is needed."""
    vdi, attachment = await _source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1", True)
    assert url.url.startswith("nbds://127.0.0.1:") and len(url.password) >= 32 and url.password not in repr(url)
    assert await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1", True) == url
    await kit.ours.vdi_copy(vdi, attrs.evolve(url, password="0" * 64), "wrong", None)
    assert (await kit.ours.copy_state("wrong")).state is CopyState.FAILED
    await kit.ours.vdi_copy(vdi, url, "ref", None)
    await state_of(kit, "ref", CopyState.READY)
    await kit.write(attachment, 3 * MIB, b"late" * 1024)
    await kit.ours.vdi_deactivate(vdi)
    assert (await kit.ours.copy_state("ref")).state is CopyState.FINISHED
    for _ in range(2):
        await kit.theirs.vdi_close_url(fresh, "m")
    assert await _received(kit, fresh, 3 * MIB) == b"late" * 1024
    assert await _received(kit, fresh, 5 * MIB) == b"once" * 1024
    await kit.ours.vdi_detach(vdi)


async def check_same_disk_named_in_its_url(kit: SRKit) -> None:
    """The same-disk test where the offer is https."""
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    url = await kit.ours.vdi_dummy_url(vdi, SIZE, "m", "127.0.0.1", True)
    await kit.ours.vdi_copy(vdi, url, "same", await kit.ours.same_disk_proof("m"))
    status = await kit.ours.copy_state("same")
    assert status.state is CopyState.FINISHED and status.same_disk, status
    await kit.ours.copy_cancel("same")
    await kit.ours.forget_proof("m")
    await kit.ours.vdi_close_url(vdi, "m")


async def check_copy_of_a_halted_disk(kit: SRKit) -> None:
    """A VDI that no domain uses is copied too, and copy_finish ends it."""
    vdi, _ = await _source(kit, b"once")
    await kit.ours.vdi_detach(vdi)
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    await kit.ours.vdi_copy(vdi, await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1"), "ref", None)
    await state_of(kit, "ref", CopyState.READY)
    for _ in range(2):
        await kit.ours.copy_finish("ref")
    assert (await kit.ours.copy_state("ref")).state is CopyState.FINISHED
    await kit.theirs.vdi_close_url(fresh, "m")
    assert await _received(kit, fresh, 0) == b"once" * 1024
    await kit.ours.vdi_destroy(vdi)


async def check_cancel(kit: SRKit) -> None:
    """Cancelling may be repeated, forgets the ref, and leaves the guest alone."""
    await kit.ours.copy_cancel("nobody")
    await raises(HandleInvalid, kit.ours.copy_state("nobody"))
    vdi, attachment = await _source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1")
    for wait_for_ready in (False, True):
        await kit.ours.vdi_copy(vdi, url, "ref", None)
        if wait_for_ready:
            await state_of(kit, "ref", CopyState.READY)
        for _ in range(2):
            await kit.ours.copy_cancel("ref")
        await raises(HandleInvalid, kit.ours.copy_state("ref"))
        await kit.write(attachment, 0, b"more" * 1024)
    await kit.theirs.vdi_close_url(fresh, "m")
    await kit.ours.vdi_detach(vdi)


async def check_closed_url(kit: SRKit) -> None:
    """Into a LUN that has been closed nothing is copied: the copy fails with a sentence, the VDI is free."""
    vdi, attachment = await _source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1")
    await kit.theirs.vdi_close_url(fresh, "m")
    await kit.ours.vdi_copy(vdi, url, "ref", None)
    status = await kit.ours.copy_state("ref")
    assert status.state is CopyState.FAILED and status.error and url.password not in status.error
    await kit.write(attachment, 0, b"more" * 1024)
    await kit.ours.vdi_detach(vdi)
    assert (await kit.ours.copy_state("ref")).state is CopyState.FAILED


async def check_wrong_password(kit: SRKit) -> None:
    """The account is needed."""
    vdi, _ = await _source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1")
    await kit.ours.vdi_copy(vdi, attrs.evolve(url, password="w" * 43), "ref", None)
    assert (await kit.ours.copy_state("ref")).state is CopyState.FAILED
    await kit.theirs.vdi_close_url(fresh, "m")
    await kit.ours.vdi_detach(vdi)


async def check_same_disk(kit: SRKit) -> None:
    """A disk that the other side found is not copied, if the proof holds; without it nothing is written."""
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    url = await kit.ours.vdi_dummy_url(vdi, SIZE, "m", "127.0.0.1")
    proof = await kit.ours.same_disk_proof("m")
    await kit.ours.vdi_copy(vdi, url, "same", proof)
    status = await kit.ours.copy_state("same")
    assert status.state is CopyState.FINISHED and status.same_disk
    tries: list[tuple[str, SameDiskProof | None, bool]] = [
        ("none", None, False),
        ("clone", SameDiskProof(proof.name, "0" * 32), False),
        ("forced", proof, True),
    ]
    for ref, given, force in tries:
        await kit.ours.vdi_copy(vdi, url, ref, given, force)
        status = await kit.ours.copy_state(ref)
        assert status.state is CopyState.FAILED and not status.same_disk and status.error, ref
    for _ in range(2):
        await kit.ours.forget_proof("m")
    await kit.ours.vdi_copy(vdi, url, "late", proof)
    assert (await kit.ours.copy_state("late")).state is CopyState.FAILED
    await kit.ours.vdi_close_url(vdi, "m")


SR_CHECKS = (
    check_sr_must_be_attached,
    check_create_and_destroy,
    check_full,
    check_a_view,
    check_missing,
    check_gate,
    check_in_use,
    check_resize,
    check_copy_of_a_running_disk,
    check_encrypted_copy,
    check_same_disk_named_in_its_url,
    check_copy_of_a_halted_disk,
    check_cancel,
    check_closed_url,
    check_wrong_password,
    check_same_disk,
)

COPY_CHECKS = (
    check_copy_of_a_running_disk,
    check_encrypted_copy,
    check_copy_of_a_halted_disk,
    check_cancel,
    check_closed_url,
)
"""Those in which `theirs` is more than a place: for a backend as receiver."""


# -- for the author of a backend: `make` gives the backend object of one empty SR with 64 MiB free at least; called
# twice for the same SR it stands for a second host or a restarted daemon.

BackendFactory = Callable[[], ISRBackend]


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


BACKEND_CHECKS = (
    check_backend_vdi_life,
    check_backend_reads_as_zeroes,
    check_backend_after_a_restart,
    check_backend_odd_size,
    check_backend_full,
    check_backend_nonce,
)
