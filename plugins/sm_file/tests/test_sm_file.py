"""What is sm_file's own; the contract suite runs in the main tree."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
import pytest_twisted
from sm_file.driver import NAMES, FileDriver

from xapi_migrate.errors import InvalidValue, SrBackendFailure, SrFull
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.interfaces import ImageFormat, ISRBackend, SRConfig

MIB = 1 << 20


def open_sr(location: Path, **config: str) -> ISRBackend:
    return FileDriver().open_sr(SRConfig(str(uuid.uuid4()), "file", {"location": str(location), **config}))


@pytest.mark.parametrize(
    "config", [{"location": "relative"}, {"format": "vmdk"}, {"size_limit": "-1"}, {"size_limit": "much"}]
)
def test_wrong_device_config_is_said(tmp_path: Path, config: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        FileDriver().open_sr(SRConfig("u", "file", {"location": str(tmp_path), **config}))


@pytest_twisted.ensureDeferred
async def test_a_missing_directory_is_said_at_attach(tmp_path: Path) -> None:
    with pytest.raises(SrBackendFailure, match="no directory"):
        await open_sr(tmp_path / "absent").attach()


@pytest_twisted.ensureDeferred
async def test_drafts_of_a_killed_daemon_go_at_attach(tmp_path: Path) -> None:
    forgotten, fresh, stranger = (tmp_path / f"{name}.new" for name in (uuid.uuid4(), uuid.uuid4(), "mine"))
    for draft in (forgotten, fresh, stranger):
        draft.touch()
    for draft in (forgotten, stranger):
        os.utime(draft, (0, 0))
    await open_sr(tmp_path).attach()
    assert sorted(tmp_path.glob("*.new")) == sorted([fresh, stranger])


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vhd"])
@pytest_twisted.ensureDeferred
async def test_images_are_sparse_and_named_by_format(tmp_path: Path, kind: str) -> None:
    backend, vdi = open_sr(tmp_path, format=kind), str(uuid.uuid4())
    await backend.vdi_create(vdi, 512 * MIB)
    location = await backend.vdi_location(vdi)
    assert location.path == tmp_path / f"{vdi}.{kind}" and location.format is NAMES[kind]
    assert location.path.stat().st_blocks * 512 < MIB
    assert [path.name for path in tmp_path.iterdir()] == [f"{vdi}.{kind}"]


@pytest_twisted.ensureDeferred
async def test_a_guest_cannot_change_the_format_by_writing_a_header(tmp_path: Path) -> None:
    backend, vdi = open_sr(tmp_path), str(uuid.uuid4())
    await backend.vdi_create(vdi, MIB)
    with (tmp_path / f"{vdi}.raw").open("r+b") as file:
        file.write(b"QFI\xfb" + bytes(20) + (1 << 40).to_bytes(8, "big"))
    assert (await backend.vdi_location(vdi)).format is ImageFormat.RAW
    assert [info.virtual_size for info in await backend.scan()] == [MIB]


@pytest_twisted.ensureDeferred
async def test_strangers_in_the_directory_are_no_vdis(tmp_path: Path) -> None:
    (tmp_path / "readme.raw").write_text("not an image")
    (tmp_path / f"{uuid.uuid4()}.qcow2").write_text("no header")
    (tmp_path / f"{uuid.uuid4()}.new").write_text("a draft")
    assert await open_sr(tmp_path).scan() == []


@pytest_twisted.ensureDeferred
async def test_the_limit_counts_virtual_sizes(tmp_path: Path) -> None:
    backend = open_sr(tmp_path, size_limit=str(10 * MIB))
    await backend.vdi_create(str(uuid.uuid4()), 8 * MIB)
    stat = await backend.stat()
    assert (stat.total, stat.free, stat.used, stat.reserves) == (10 * MIB, 2 * MIB, 8 * MIB, True)
    assert not (await open_sr(tmp_path).stat()).reserves  # without it a sparse image takes room as it is written
    with pytest.raises(SrFull) as full:
        await backend.vdi_create(str(uuid.uuid4()), 3 * MIB)
    assert (full.value.requested, full.value.available) == (3 * MIB, 2 * MIB)


@pytest.mark.parametrize("vdi", ["../escape", "", "11111111-2222-3333-4444-55555555555Z"])
@pytest_twisted.ensureDeferred
async def test_uuids_that_are_none_reach_no_file(tmp_path: Path, vdi: str) -> None:
    backend = open_sr(tmp_path)
    with pytest.raises(InvalidValue):
        await backend.vdi_create(vdi, MIB)
    await backend.vdi_destroy(vdi)
    with pytest.raises(InvalidValue):
        await backend.nonce_write("../escape", "x")


@pytest.mark.parametrize("size", [512, 10 * MIB + 512, 130 * MIB])
@pytest_twisted.ensureDeferred
async def test_a_vhd_has_the_size_that_was_asked_for(tmp_path: Path, size: int) -> None:
    """Its geometry cannot say most sizes."""
    backend, vdi = open_sr(tmp_path, format="vhd"), str(uuid.uuid4())
    assert (await backend.vdi_create(vdi, size)).virtual_size == size
    assert [info.virtual_size for info in await backend.scan()] == [size]


@pytest_twisted.ensureDeferred
async def test_a_vhd_of_another_maker_is_as_large_as_its_geometry(tmp_path: Path) -> None:
    backend, vdi = open_sr(tmp_path, format="vhd"), str(uuid.uuid4())
    await backend.vdi_create(vdi, 10 * MIB + 512)
    with (tmp_path / f"{vdi}.vhd").open("r+b") as file:
        file.seek(28)
        file.write(b"vbox")
        file.seek(56)
        file.write((300).to_bytes(2, "big") + bytes([4, 17]))
    assert [info.virtual_size for info in await backend.scan()] == [300 * 4 * 17 * 512]


@pytest_twisted.ensureDeferred
async def test_a_vhd_that_builds_on_another_is_not_opened(tmp_path: Path) -> None:
    """QEMU would show zeroes in the place of what is in the other."""
    backend, vdi = open_sr(tmp_path, format="vhd"), str(uuid.uuid4())
    await backend.vdi_create(vdi, 8 * MIB)
    with (tmp_path / f"{vdi}.vhd").open("r+b") as file:
        file.seek(60)
        file.write((4).to_bytes(4, "big"))
    with pytest.raises(SrBackendFailure, match="builds on another"):
        await backend.vdi_location(vdi)


@pytest_twisted.ensureDeferred
async def test_a_vhd_does_not_grow(tmp_path: Path) -> None:
    backend, vdi = open_sr(tmp_path, format="vhd"), str(uuid.uuid4())
    await backend.vdi_create(vdi, MIB)
    with pytest.raises(SrOperationNotSupported):
        await backend.vdi_resize(vdi, 2 * MIB)  # type: ignore[attr-defined]
