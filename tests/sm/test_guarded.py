"""A backend that raises, hangs or lies: what was asked of it fails, with a sentence, and nothing else does."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from sm_file.driver import FileDriver
from twisted.internet import defer, reactor, task
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.sm.two_hosts import MIB, QUICK, begin_copy, guest_on, image, make_disk, two_hosts, until
from xapi_migrate.errors import SrBackendFailure, SrFull
from xapi_migrate.refusals import SrOperationNotSupported
from xapi_migrate.sm.guarded import GuardedBackend
from xapi_migrate.sm.interfaces import (
    CopyState,
    CopyStatus,
    ImageFormat,
    ImageLocation,
    ISMDriver,
    ISRBackend,
    Purpose,
    SRConfig,
    SRStat,
    TargetUrl,
    VDIInfo,
)
from xapi_migrate.sm.repository import Repository, open_repository
from xapi_migrate.sm.services import SMServices

VDI = str(uuid.uuid4())


@implementer(ISRBackend)
class Answering:
    """Does for every call what it was told to."""

    def __init__(self, does: Callable[[], Any]) -> None:
        self.does = does

    def attach(self) -> Any:
        return self.does()

    def detach(self) -> Any:
        return self.does()

    def stat(self) -> Any:
        return self.does()

    def scan(self) -> Any:
        return self.does()

    def vdi_create(self, uuid: str, virtual_size: int) -> Any:
        return self.does()

    def vdi_destroy(self, uuid: str) -> Any:
        return self.does()

    def vdi_location(self, uuid: str) -> Any:
        return self.does()

    def nonce_write(self, name: str, value: str) -> Any:
        return self.does()

    def nonce_read(self, name: str) -> Any:
        return self.does()


def guarded(does: Callable[[], Any], clock: Any = None, **how: Any) -> GuardedBackend:
    return GuardedBackend("sr", Answering(does), clock or task.Clock(), 5.0, **how)


def answered(value: Any) -> GuardedBackend:
    return guarded(lambda: defer.succeed(value))


def raising(error: BaseException) -> Callable[[], Any]:
    def now() -> Any:
        raise error

    return now


def later(error: BaseException) -> Callable[[], Any]:
    async def coroutine() -> None:
        raise error

    return coroutine


async def stubborn() -> None:
    """Takes no notice of being cancelled."""
    while True:
        try:
            await defer.Deferred()
        except defer.CancelledError:
            continue


@pytest.mark.parametrize(
    "does", [raising(KeyError("lost")), later(KeyError("lost")), later(SystemExit(3)), lambda: None]
)
def test_what_it_raises_is_told_with_the_sr(does: Callable[[], Any]) -> None:
    with pytest.raises(SrBackendFailure, match="the sizes of SR sr") as told:
        _result(guarded(does).stat())
    assert told.value.failure()[0] == "SR_BACKEND_FAILURE"


def test_an_error_of_the_catalogue_passes() -> None:
    with pytest.raises(SrFull):
        _result(guarded(later(SrFull("sr", 2, 1))).vdi_create(VDI, MIB))


def test_one_that_cancels_itself_has_failed() -> None:
    with pytest.raises(SrBackendFailure, match="CancelledError"):
        _result(guarded(later(defer.CancelledError())).stat())


@pytest.mark.parametrize("does", [defer.Deferred, stubborn])
def test_it_has_a_time_out_even_if_it_cannot_be_cancelled(does: Callable[[], Any]) -> None:
    clock = task.Clock()
    asked = defer.ensureDeferred(guarded(does, clock).attach())
    clock.advance(4.9)
    assert not asked.called
    clock.advance(0.2)
    with pytest.raises(SrBackendFailure, match="no answer for 5 s"):
        _result(asked)
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("does", [defer.Deferred, stubborn])
def test_whoever_asked_can_be_cancelled(does: Callable[[], Any]) -> None:
    asked = defer.ensureDeferred(guarded(does).attach())
    asked.cancel()
    with pytest.raises(defer.CancelledError):
        _result(asked)


@pytest.mark.parametrize(
    "stat",
    [None, (1, 1, 1), SRStat(-1, 0, 0), SRStat(1, 2, 0), SRStat(1.5, 1, 0), SRStat("2", "1", "1")],  # type: ignore[arg-type]
)
def test_sizes_of_an_sr_that_cannot_be(stat: Any) -> None:
    with pytest.raises(SrBackendFailure, match="cannot be"):
        _result(answered(stat).stat())


@pytest.mark.parametrize(
    "info",
    [
        None,
        VDIInfo("other", MIB),
        VDIInfo(VDI, 2 * MIB),
        VDIInfo(VDI, MIB - 512),
        VDIInfo(VDI, MIB + 1),
        VDIInfo(VDI, 0),
    ],
)
def test_a_new_vdi_of_another_size_is_none(info: Any) -> None:
    with pytest.raises(SrBackendFailure):
        _result(answered(info).vdi_create(VDI, MIB))


@pytest.mark.parametrize(
    "name", ["", "a", "../../x", "/etc/passwd", VDI.upper(), f"{VDI}\n", f" {VDI}", f"{VDI}/..", VDI.replace("-", ""),
             VDI[:-1], "-" * 36, "\0", VDI[:-1] + "\u0663"],
)  # fmt: skip
def test_a_scan_takes_over_nothing_whose_name_is_no_uuid(name: str) -> None:
    """It would be the name of a folder here, and of a LUN."""
    good, seen = VDIInfo(VDI, MIB), list[str]()

    def note(event: LogEvent) -> None:
        seen.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    try:
        assert _result(answered([VDIInfo(name, MIB), good]).scan()) == [good]
    finally:
        globalLogPublisher.removeObserver(note)
    [told] = seen
    assert told.startswith("the scan of SR sr by Answering shows what cannot be") and repr(name) in told
    with pytest.raises(SrBackendFailure):
        _result(answered(VDIInfo(name, MIB)).vdi_create(name, MIB))


def test_a_scan_leaves_out_what_cannot_be() -> None:
    good = VDIInfo(VDI, MIB)
    none = [VDIInfo(str(uuid.uuid4()), size) for size in (-512, 5, 0)]
    strange = [good, None, *none, VDIInfo(VDI, 2 * MIB), VDIInfo(None, 512)]  # type: ignore[arg-type]
    assert _result(answered(strange).scan()) == [good]
    with pytest.raises(SrBackendFailure):
        _result(answered("rubbish").scan())


@pytest.mark.parametrize(
    "at",
    [
        None,
        "/a",
        ImageLocation(Path("a"), ImageFormat.RAW),
        ImageLocation(Path("/a"), "raw"),
        ImageLocation(Path("/a\0"), ImageFormat.RAW),
    ],
)  # type: ignore[arg-type]
def test_a_location_that_is_none(at: Any) -> None:
    with pytest.raises(SrBackendFailure):
        _result(answered(at).vdi_location(VDI))


def test_a_format_that_the_driver_does_not_name() -> None:
    backend = guarded(lambda: defer.succeed(ImageLocation(Path("/a"), ImageFormat.VHD)), formats=("raw",))
    with pytest.raises(SrBackendFailure, match="vpc is none of"):
        _result(backend.vdi_location(VDI))


def test_what_the_driver_does_not_offer_is_refused_before_it_is_asked() -> None:
    backend = guarded(raising(AssertionError("asked")), features=frozenset())
    for call in (backend.vdi_create(VDI, MIB), backend.vdi_destroy(VDI), backend.vdi_resize(VDI, MIB)):
        with pytest.raises(SrOperationNotSupported):
            _result(call)


def test_an_incomplete_backend_is_told_at_once() -> None:
    with pytest.raises(SrBackendFailure, match="incomplete"):
        GuardedBackend("sr", object(), task.Clock(), 5.0)


def _result(work: Any) -> Any:
    """What it has ended with by now."""
    ended: list[Any] = []
    defer.ensureDeferred(work).addBoth(ended.append)
    assert ended, "it has not ended"
    if isinstance(ended[0], Failure):
        raise ended[0].value or RuntimeError(str(ended[0]))
    return ended[0]


# -- in the whole


@implementer(ISMDriver)
class OtherFiles(FileDriver):
    """sm_file with other answers; `spoil` gets the backend."""

    def __init__(self, spoil: Callable[[Any], None]) -> None:
        self._spoil = spoil

    def open_sr(self, config: SRConfig) -> ISRBackend:
        backend = super().open_sr(config)
        backend.services = config.services  # type: ignore[attr-defined]
        self._spoil(backend)
        return backend


def open_spoiled(services: SMServices, folder: Path, spoil: Callable[[Any], None], **config: str) -> Repository:
    folder.mkdir(exist_ok=True)
    record = SRConfig(str(uuid.uuid4()), "file", {"location": str(folder), **config})
    return open_repository(OtherFiles(spoil), record, services)


def test_a_driver_that_raises() -> None:
    class Raising(FileDriver):
        def open_sr(self, config: SRConfig) -> ISRBackend:
            raise ZeroDivisionError

    with pytest.raises(SrBackendFailure, match="opening SR u: ZeroDivisionError"):
        open_repository(Raising(), SRConfig("u", "file", {}), SMServices(reactor, Path("/tmp/none")))


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_one_sr_hangs_while_another_migrates(tmp_path: Path) -> None:
    """A receiver with a backend that answers nothing: what is asked of it fails after its time; a copy beside it, on
    the same hosts, ends well meanwhile."""

    def hang(backend: Any) -> None:
        backend.vdi_create = lambda uuid, size: defer.Deferred()

    async with two_hosts(tmp_path, timeouts=attrs.evolve(QUICK, backend=3.0)) as (ours, theirs):
        hung = open_spoiled(theirs.services, tmp_path / "hung", hang)
        await hung.attach()
        creating = defer.ensureDeferred(hung.vdi_create(str(uuid.uuid4()), MIB))
        vdi = await make_disk(ours, 4 * MIB, MIB)
        await begin_copy(ours, theirs, vdi, 4 * MIB)
        await until(ours, "copy-1", CopyState.READY)
        await ours.sr.copy_finish("copy-1")
        with pytest.raises(SrBackendFailure, match="no answer for 3 s"):
            await creating
        assert (await ours.sr.copy_state("copy-1")).state is CopyState.FINISHED


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_lie_about_a_size_fails_the_vdi_alone(tmp_path: Path) -> None:
    """The scan says twice what the image has: it cannot be activated, and its neighbour can."""
    async with two_hosts(tmp_path) as (ours, _):
        wrong, right = str(uuid.uuid4()), str(uuid.uuid4())

        def lie(backend: Any) -> None:
            true = backend.scan

            async def scan() -> list[VDIInfo]:
                return [
                    attrs.evolve(one, virtual_size=one.virtual_size * (1 + (one.uuid == wrong))) for one in await true()
                ]

            backend.scan = scan

        sr = open_spoiled(ours.services, tmp_path / "lying", lie)
        await sr.attach()
        for vdi in (wrong, right):
            await sr.vdi_create(vdi, MIB)
        await sr.scan()
        await sr.vdi_attach(wrong, Purpose.DOMAIN)
        with pytest.raises(SrBackendFailure, match="holds 1048576 bytes, 2097152 were expected"):
            await sr.vdi_activate(wrong)
        await sr.vdi_detach(wrong)
        await sr.vdi_attach(right, Purpose.DOMAIN)
        await sr.vdi_activate(right)
        await sr.vdi_detach(right)


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_own_calls_may_use_the_shared_ones(tmp_path: Path) -> None:
    """A backend that looks at URLs and copies, and leaves the work to the shared services."""
    seen: list[str] = []

    def wrap(backend: Any) -> None:
        async def vdi_get_url(uuid: str, migration: str, address: str, secure: bool) -> TargetUrl | None:
            seen.append("url")
            return await backend.services.vdi_get_url(uuid, migration, address, secure)  # type: ignore[no-any-return]

        async def vdi_close_url(uuid: str, migration: str) -> None:
            seen.append("close")

        async def vdi_copy(uuid: str, *how: Any) -> Any:
            seen.append("copy")
            return await backend.services.vdi_copy(uuid, *how)

        backend.vdi_get_url, backend.vdi_close_url, backend.vdi_copy = vdi_get_url, vdi_close_url, vdi_copy

    async with two_hosts(tmp_path) as (ours, theirs):
        ours.sr = open_spoiled(ours.services, ours.folder / "sr", wrap)
        theirs.sr = open_spoiled(theirs.services, theirs.folder / "sr", wrap)
        for host in (ours, theirs):
            await host.sr.attach()
        vdi = await make_disk(ours, 4 * MIB, MIB)
        async with guest_on(ours, vdi) as guest:
            fresh, _ = await begin_copy(ours, theirs, vdi, 4 * MIB)
            await until(ours, "copy-1", CopyState.READY)
            await guest.client.write(0, b"late" * 1024)
            await ours.sr.vdi_deactivate(vdi)
        await until(ours, "copy-1", CopyState.FINISHED)
        await theirs.sr.vdi_close_url(fresh, "migration-1")
        await ours.sr.vdi_detach(vdi)
        assert image(ours, vdi).read_bytes() == image(theirs, fresh).read_bytes()
        await ours.sr.copy_cancel("copy-1")
    assert seen == ["url", "copy", "close"]


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_copy_of_the_backends_own(tmp_path: Path) -> None:
    """It is followed, finished when the domain's I/O has ended, replaced and cancelled as the shared ones are."""
    told: list[str] = []

    class OwnCopy:
        status = CopyStatus(CopyState.READY, 1, 1)

        async def finish(self) -> None:
            told.append("finish")
            self.status = CopyStatus(CopyState.FINISHED, 1, 1)

        async def cancel(self) -> None:
            told.append("cancel")

        async def replace(self, url: TargetUrl) -> None:
            told.append(f"replace {url.url}")

    def own(backend: Any) -> None:
        async def vdi_copy(*how: Any) -> OwnCopy:
            return OwnCopy()

        backend.vdi_copy = vdi_copy

    async with two_hosts(tmp_path) as (ours, _):
        sr = open_spoiled(ours.services, ours.folder / "sr", own)
        await sr.attach()
        vdi, url = str(uuid.uuid4()), TargetUrl("array://there/7", "", "")
        await sr.vdi_create(vdi, MIB)
        await sr.vdi_attach(vdi, Purpose.DOMAIN)
        await sr.vdi_activate(vdi)
        for _ in range(2):
            await sr.vdi_copy(vdi, url, "ref", None)
        assert (await sr.copy_state("ref")).state is CopyState.READY
        await sr.copy_replace("ref", attrs.evolve(url, url="array://there/8"))
        assert told == ["replace array://there/8"]
        await sr.vdi_deactivate(vdi)
        assert (await sr.copy_state("ref")).state is CopyState.FINISHED
        await sr.copy_cancel("ref")
        await sr.vdi_detach(vdi)
    assert told[1:] == ["finish", "cancel"]


@pytest.mark.system
@pytest_twisted.ensureDeferred
async def test_a_program_dies_with_the_call_that_ran_it(tmp_path: Path) -> None:
    def slow(backend: Any) -> None:
        async def stat() -> SRStat:
            await backend.services.run(["sh", "-c", f"echo $$ >{tmp_path}/pid; exec sleep 300"])
            raise AssertionError("it ended")

        backend.stat = stat

    async with two_hosts(tmp_path, timeouts=attrs.evolve(QUICK, backend=1.0)) as (ours, _):
        sr = open_spoiled(ours.services, tmp_path / "slow", slow)
        await sr.attach()
        with pytest.raises(SrBackendFailure, match="no answer for 1 s"):
            await sr.stat()
        process = Path("/proc") / (tmp_path / "pid").read_text().strip()
        deadline = time.monotonic() + 30
        while process.exists() and time.monotonic() < deadline:
            await task.deferLater(reactor, 0.02)
        assert not process.exists()
