"""VDI.resize, and what is asked of an SR that does not do it."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from tests.toolstack.small_host import MemoryDriver, small_host
from xapi_migrate.errors import InvalidValue, VdiInUse
from xapi_migrate.refusals import SrOperationNotSupported

MIB = 1 << 20


@pytest_twisted.ensureDeferred
async def test_a_disk_grows_when_nobody_uses_it(tmp_path: Path) -> None:
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        assert "vdi_resize" in here.get("SR", sr)["allowed_operations"]
        vm = await here.vm(sr)
        (vdi,) = here.get("SR", sr)["VDIs"]
        await here.call("VDI.resize", vdi, str(MIB + 1))
        assert here.get("VDI", vdi)["virtual_size"] == MIB + 512
        assert here.get("SR", sr)["virtual_allocation"] == MIB + 512
        with pytest.raises(InvalidValue):
            await here.call("VDI.resize", vdi, str(MIB))
        await here.call("VM.start", vm, False, False)
        with pytest.raises(VdiInUse):
            await here.call("VDI.resize", vdi, str(2 * MIB))
        await here.call("VM.hard_shutdown", vm)


@pytest_twisted.ensureDeferred
async def test_what_an_sr_does_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryDriver, "features", frozenset({"VDI_CREATE", "VDI_DESTROY"}))
    async with small_host(tmp_path) as here:
        sr = await here.sr()
        assert "vdi_resize" not in here.get("SR", sr)["allowed_operations"]
        vdi = await here.call("VDI.create", {"SR": sr, "virtual_size": "1024", "name_label": "d", "type": "user"})
        for call in ("VDI.snapshot", "VDI.clone"):
            with pytest.raises(SrOperationNotSupported) as refused:
                await here.call(call, vdi)
            assert refused.value.failure() == ["SR_OPERATION_NOT_SUPPORTED", sr]
        with pytest.raises(InvalidValue):  # its SRs belong to one host
            await here.call("SR.create", here.host, {}, 0, "shared", "", "memory", "user", True, {})
