"""A guest writes whatever it likes at the beginning of its disk, and that is what stays there."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.utils import getProcessOutputAndValue

from tests.sm.two_hosts import MIB, begin_copy, compare, guest_on, image, make_disk, two_hosts, until
from xapi_migrate.sm.interfaces import CopyState

pytestmark = pytest.mark.system
SECRET = b"a file of the host\n"


def qcow2_header(backing: str) -> bytes:
    """The header of a qcow2 image of 8 MiB whose content is that of another file."""
    name = backing.encode()
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 72, len(name), 16, 8 * MIB, 0, 1, 65536, 131072, 1, 0, 0)
    return (head + name).ljust(4096, b"\0")


def json_name(path: Path) -> str:
    return f'json:{{"driver":"raw","file":{{"driver":"file","filename":"{path}"}}}}'


def vmdk(path: Path) -> bytes:
    lines = (
        "# Disk DescriptorFile", "version=1", "CID=0", "parentCID=ffffffff", 'createType="monolithicFlat"',
        f'RW 16384 FLAT "{path}" 0', "",
    )  # fmt: skip
    return "\n".join(lines).encode().ljust(4096, b"\0")


HEADERS = {
    "qcow2": lambda path: qcow2_header(str(path)),
    "qcow2 of json": lambda path: qcow2_header(json_name(path)),
    "vmdk": vmdk,
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("receiver", ["raw", "qcow2"])
@pytest_twisted.ensureDeferred
async def test_a_guest_cannot_make_its_disk_another_file(tmp_path: Path, kind: str, receiver: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    header = HEADERS[kind](secret)
    async with two_hosts(tmp_path, "raw", receiver) as (ours, theirs):
        vdi = await make_disk(ours, 8 * MIB)
        async with guest_on(ours, vdi) as guest:
            await guest.client.write(0, header)
            await ours.sr.vdi_deactivate(vdi)  # its end
        fooled, _, _ = await getProcessOutputAndValue("qemu-img", ["info", "-U", str(image(ours, vdi))])
        assert b"file format: raw" not in fooled  # who probes is taken in
        async with guest_on(ours, vdi) as guest:
            assert await guest.client.read(0, 4096) == header
            fresh, _ = await begin_copy(ours, theirs, vdi, 8 * MIB)
            await until(ours, "copy-1", CopyState.READY)
            await ours.sr.vdi_deactivate(vdi)
            await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.services.copies.tidied(vdi)
        assert await compare(image(ours, vdi), image(theirs, fresh)) == ""
        async with guest_on(theirs, fresh) as guest:
            assert await guest.client.read(0, 4096) == header
        for host in (ours, theirs):
            await host.sr.scan()
            assert [info.virtual_size for info in await host.sr.scan()] == [8 * MIB]
