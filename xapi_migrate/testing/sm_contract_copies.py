"""The contract of an SR: copies between two hosts."""

from __future__ import annotations

import attrs

from xapi_migrate.errors import (
    HandleInvalid,
    VdiInUse,
)
from xapi_migrate.sm.interfaces import (
    CopyState,
    Purpose,
    SameDiskProof,
)
from xapi_migrate.testing.sm_kit import MIB, SIZE, SRKit, new_source, new_uuid, raises, state_of
from xapi_migrate.together import together


async def _received(kit: SRKit, vdi: str, offset: int) -> bytes:
    attachment = await kit.theirs.vdi_attach(vdi, Purpose.DOMAIN)
    await kit.theirs.vdi_activate(vdi)
    content = await kit.read(attachment, offset, 4096)
    await kit.theirs.vdi_detach(vdi)
    return content


async def check_copy_of_a_running_disk(kit: SRKit) -> None:
    """The whole of it: URL, copy, ready, guest writes, deactivate, finished, close, equal. The receiver's domain
    is attached, gate shut, while the LUN is still written to."""
    vdi, attachment = await new_source(kit, b"once")
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
    vdi, attachment = await new_source(kit, b"once")
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
    vdi, _ = await new_source(kit, b"once")
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
    vdi, attachment = await new_source(kit, b"once")
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
    vdi, attachment = await new_source(kit, b"once")
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
    vdi, _ = await new_source(kit, b"once")
    fresh = new_uuid()
    await kit.theirs.vdi_create(fresh, SIZE)
    url = await kit.theirs.vdi_get_url(fresh, "m", "127.0.0.1")
    await kit.ours.vdi_copy(vdi, attrs.evolve(url, password="w" * 43), "ref", None)
    assert (await kit.ours.copy_state("ref")).state is CopyState.FAILED
    await kit.theirs.vdi_close_url(fresh, "m")
    await kit.ours.vdi_detach(vdi)


async def check_same_disks_at_once(kit: SRKit) -> None:
    """All disks of a VM are looked at in the same moment, with one nonce for all."""
    vdis = [new_uuid() for _ in range(2)]
    urls = {}
    for vdi in vdis:
        await kit.ours.vdi_create(vdi, SIZE)
        urls[vdi] = await kit.ours.vdi_dummy_url(vdi, SIZE, "m", "127.0.0.1")
    proof = await kit.ours.same_disk_proof("m")
    await together(*(kit.ours.vdi_copy(vdi, urls[vdi], f"same {vdi}", proof) for vdi in vdis))
    for vdi in vdis:
        status = await kit.ours.copy_state(f"same {vdi}")
        assert status.state is CopyState.FINISHED and status.same_disk, status.error
        await kit.ours.copy_cancel(f"same {vdi}")
        await kit.ours.vdi_close_url(vdi, "m")
    await kit.ours.forget_proof("m")


async def check_same_disk(kit: SRKit) -> None:
    """A disk that the other side found is not copied, if the proof holds; without it nothing is written."""
    vdi = new_uuid()
    await kit.ours.vdi_create(vdi, SIZE)
    url = await kit.ours.vdi_dummy_url(vdi, SIZE, "m", "127.0.0.1")
    proof = await kit.ours.same_disk_proof("m")
    assert not await kit.ours.proof_is_seen("m")
    await kit.ours.vdi_copy(vdi, url, "same", proof)
    status = await kit.ours.copy_state("same")
    assert status.state is CopyState.FINISHED and status.same_disk
    assert await kit.ours.proof_is_seen("m")
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
    assert not await kit.ours.proof_is_seen("m")
    await kit.ours.vdi_copy(vdi, url, "late", proof)
    assert (await kit.ours.copy_state("late")).state is CopyState.FAILED
    await kit.ours.vdi_close_url(vdi, "m")
