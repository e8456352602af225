"""The SM interface.

Two sides. `ISMDriver` and `ISRBackend` are what the author of a storage backend writes: where VDIs
live, nothing more. `ISR` is what the engine uses: the seed's SM API for one attached SR, made by
`xapi_migrate.sm.repository` out of a backend and the shared services (datapath, iSCSI service, copier).
A backend never opens an image itself, the datapath does. What a backend may have in addition, and what is handed to
it, is in `xapi_migrate.sm.optional`.

Sizes are bytes. All methods may return Deferreds or coroutines unless said otherwise. They are called in the reactor's
thread and must not block it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import attrs
from zope.interface import Attribute, Interface

GENERATION = 1
"""The generation of this interface; a driver names the one it was written for. It is raised when a driver written
before has to be changed; what is added (optional calls, attributes with a default) does not raise it."""


class ImageFormat(Enum):
    RAW = "raw"
    QCOW2 = "qcow2"
    VHD = "vpc"


class Purpose(Enum):
    """Who an attachment is for; each is detached by its own name. domain: a domain's block device, over NBD on a
    unix socket. target: an iSCSI LUN that the sending host's copier writes to."""

    DOMAIN = "domain"
    TARGET = "target"


class CopyState(Enum):
    """pending: not yet ready, work goes on. ready: all of the disk has been copied once and writes are
    tracked, safe to migrate. finished: both sides are equal and the copier has let go. failed."""

    PENDING = "pending"
    READY = "ready"
    FINISHED = "finished"
    FAILED = "failed"


@attrs.frozen
class SRConfig:
    """An SR as its record says: `device_config` is the PBD's map (for sm_file: location, format). `services` is an
    `xapi_migrate.sm.optional.ISharedServices`; None where a backend is tried by itself."""

    uuid: str
    driver: str
    device_config: dict[str, str]
    services: Any = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen
class SRStat:
    """`total` and `free` bytes of the SR; `used` is what VDIs take up. `reserves`: `free` is already without what the
    VDIs that are there may still grow by (the backend allocates whole VDIs, or counts their virtual sizes)."""

    total: int
    free: int
    used: int
    reserves: bool = False


@attrs.frozen
class VDIInfo:
    """A VDI as its backend knows it. `virtual_size` what the guest sees, a multiple of 512; `used` what it takes up."""

    uuid: str
    virtual_size: int
    used: int = 0
    read_only: bool = False


@attrs.frozen
class ImageLocation:
    """Where the datapath finds a VDI: an absolute path of a file or block device, and its format
    (never probed). `size`, for a raw image that lies in something larger: the bytes that are the disk, 0: all."""

    path: Path
    format: ImageFormat
    size: int = 0


@attrs.frozen
class ImageNode:
    """The same for what has no path on this host: a block node of QEMU, which the datapath opens with a library of
    QEMU's own (iscsi, nbd, rbd, ssh, http...). `options` are those of blockdev-add, `driver` among them, without
    node-name. `secrets` are passed by reference: option (such as "password-secret") -> text."""

    options: Mapping[str, Any]
    format: ImageFormat = ImageFormat.RAW
    size: int = 0
    secrets: Mapping[str, str] = attrs.field(factory=dict, repr=False)


class ISRBackend(Interface):
    """One SR, as the author of a backend writes it: these calls are required.

    Made anew by each start of the daemon, and for each host that has the SR. Calls for different VDIs run side by side,
    those for one VDI never. Each may be repeated after a failure, a time-out or a restart, and must then end as if it
    had come once. One that does not answer in time is cancelled, and has failed. Beside the errors named here
    InvalidValue and SrBackendFailure may be raised; anything else becomes SR_BACKEND_FAILURE. docs/sm-interface.md says
    when each comes.
    """

    def attach() -> Awaitable[None]:
        """Make the SR usable on this host; on each start of the daemon. SrBackendFailure if it cannot be."""

    def detach() -> Awaitable[None]:
        """The SR is no longer used on this host, none of its VDIs is attached. Not at the end of the daemon."""

    def stat() -> Awaitable[SRStat]:
        """Sizes now; 0 <= free <= total."""

    def scan() -> Awaitable[list[VDIInfo]]:
        """All VDIs that are in the SR, those that other hosts made too."""

    def vdi_create(uuid: str, virtual_size: int) -> Awaitable[VDIInfo]:
        """A new VDI of exactly this size, rounded up to a multiple of 512, that reads as zeroes. A repeat of the same
        answers the VDI that is there. SrFull when there is no room, and nothing is left of it then."""

    def vdi_destroy(uuid: str) -> Awaitable[None]:
        """Remove a VDI that nobody has attached; a VDI that is not there is no error."""

    def vdi_location(uuid: str) -> Awaitable[ImageLocation | ImageNode]:
        """Where the datapath finds it. VdiMissing."""

    def nonce_write(name: str, value: str) -> Awaitable[None]:
        """Leave a text, 32 characters at most, under `name` ([0-9a-f-]+, a uuid) inside the SR for whoever shares the
        storage; value "" removes it."""

    def nonce_read(name: str) -> Awaitable[str]:
        """The text that was left under `name`, "" if there is none."""


class IAttachesVDIs(Interface):
    """What an ISRBackend offers in addition where a VDI's image has to be made reachable before it can be opened, and
    only while this host uses it."""

    def vdi_attach(uuid: str) -> Awaitable[None]:
        """A datapath is about to use what `vdi_location` names (which it does whether attached or not). Repeatable."""

    def vdi_detach(uuid: str) -> Awaitable[None]:
        """The last datapath of this host is gone. Repeatable; comes also for a VDI that is not attached or not there
        any more."""

    def vdi_keep(uuids: list[str]) -> Awaitable[None]:
        """Right after `attach`: these VDIs have a datapath that lives, from before the daemon's restart. All others are
        to be detached."""


class ISMDriver(Interface):
    """A storage backend's entry point, found through twisted.plugin."""

    name: str = Attribute("the SR type: lower case letters, digits, underscores")
    description: str = Attribute("one sentence")
    vendor: str = Attribute("who wrote it")
    version: str = Attribute("its version")
    generation: int = Attribute("the GENERATION it was written for")
    features: frozenset[str] = Attribute(
        "what its SRs can do: VDI_CREATE, VDI_DESTROY, VDI_RESIZE, SHARED; others are shown to clients and do nothing"
    )
    formats: tuple[str, ...] = Attribute("image formats it can hold, values of ImageFormat")

    def open_sr(config: SRConfig) -> ISRBackend:
        """The backend object of one SR; does no I/O. InvalidValue if device_config is wrong."""


@attrs.frozen
class Attachment:
    """How a domain reaches an attached VDI: an NBD export on a unix socket (absolute path)."""

    socket_path: str
    export: str
    virtual_size: int


@attrs.frozen
class TargetUrl:
    """Answer of VDI.get_url: `url` is iscsi://ADDRESS:PORT/IQN/LUN without credentials; `username` and
    `password` are the migration's own CHAP account. Or nbds://ADDRESS:PORT/SERIAL/ID, NBD over TLS; the password is
    then the shared key, 64 hexadecimal digits. The password's repr is hidden."""

    url: str
    username: str
    password: str = attrs.field(repr=False)


def seen_name(name: str) -> str:
    """Under which a sender answers the nonce `name`."""
    return str(uuid5(NAMESPACE_OID, name))


@attrs.frozen
class SameDiskProof:
    """How either side can prove to the other that it means the same storage: the receiver's SM left `value` under
    `name` in its SR, where only who sees the same SR reads it back; the sender's SM then leaves it under `seen`, where
    only he can."""

    name: str
    value: str

    @property
    def seen(self) -> str:
        """The name of the sender's answer."""
        return seen_name(self.name)


@attrs.frozen
class CopyStatus:
    """Answer of Task.get_state. `copied` of `total` bytes, `total` grows with guest writes; `same_disk` true when there
    was nothing to copy; `error` a sentence when failed; `slowed`: bytes per second to which the guest's writes are
    limited, because it wrote faster than the copy, 0: not."""

    state: CopyState
    copied: int = 0
    total: int = 0
    same_disk: bool = False
    error: str = ""
    slowed: int = 0


class MoveState(Enum):
    """NONE: no job is there."""

    NONE = "none"
    COPYING = "copying"
    READY = "ready"
    MOVED = "moved"
    FAILED = "failed"


@attrs.frozen
class MoveStatus:
    """`copied` of `total` bytes; `error` a sentence when failed."""

    state: MoveState
    copied: int = 0
    total: int = 0
    error: str = ""


class ISR(Interface):
    """The SM API for one attached SR. All calls are repeatable: a repeat of one that succeeded succeeds."""

    uuid: str = Attribute("the SR's uuid")

    def attach() -> Awaitable[None]:
        """SR.attach."""

    def detach() -> Awaitable[None]:
        """SR.detach; VdiInUse while a VDI is attached."""

    def stat() -> Awaitable[SRStat]:
        """SR.stat."""

    def scan() -> Awaitable[list[VDIInfo]]:
        """SR.scan."""

    def vdi_create(uuid: str, virtual_size: int) -> Awaitable[VDIInfo]:
        """VDI.create. SrFull when there is no room."""

    def vdi_destroy(uuid: str) -> Awaitable[None]:
        """VDI.destroy; VdiInUse while it is attached."""

    def vdi_resize(uuid: str, virtual_size: int) -> Awaitable[VDIInfo]:
        """VDI.resize; VdiInUse while it is attached, InvalidValue when it would shrink. SrFull,
        SrOperationNotSupported."""

    def vdi_attach(uuid: str, purpose: Purpose, read_only: bool = False) -> Awaitable[Attachment]:
        """VDI.attach (step 4.2 on the receiver): the export exists from now on, its gate shut."""

    def vdi_activate(uuid: str, purpose: Purpose = Purpose.DOMAIN) -> Awaitable[None]:
        """VDI.activate: open the image and the gate."""

    def vdi_deactivate(uuid: str, purpose: Purpose = Purpose.DOMAIN) -> Awaitable[None]:
        """VDI.deactivate (step 4.4): drain, shut the gate, flush, close the image; a copy that is ready
        finishes now (the image, which nothing writes to any more, may then be closed up to VDI.detach: a guest is
        waiting). Never hangs on a dead peer: after the guard time the copier is killed and the copy fails."""

    def vdi_detach(uuid: str, purpose: Purpose = Purpose.DOMAIN) -> Awaitable[None]:
        """VDI.detach (step 5.4)."""

    def vdi_get_url(uuid: str, migration: str, address: str, secure: bool = False) -> Awaitable[TargetUrl]:
        """VDI.get_url (steps 2.3, 2.5): attach the VDI for Purpose.TARGET, make it a LUN of this `migration`'s iSCSI
        target, reachable at the local `address`. All disks of one migration share one target and one CHAP account.
        `secure`: what is copied into it crosses the network encrypted (NBD over TLS), or SrBackendFailure."""

    def vdi_dummy_url(
        uuid: str, virtual_size: int, migration: str, address: str, secure: bool = False
    ) -> Awaitable[TargetUrl]:
        """For a VDI that is found here already: a read-only LUN of its size that carries its identity
        (serial = VDI uuid, id = SR uuid); the image is not opened."""

    def vdi_close_url(uuid: str, migration: str) -> Awaitable[None]:
        """Take the LUN away: no session, no command in flight when this fires (step 5.2, before activate); the TARGET
        attachment is gone too."""

    def vdi_is_served(uuid: str, migration: str) -> Awaitable[bool]:
        """Whether the LUN that vdi_get_url or vdi_dummy_url has made is there, and the processes behind it live (3.1 to
        4.5; after a restart of the daemon too)."""

    def same_disk_proof(migration: str) -> Awaitable[SameDiskProof]:
        """Leave a fresh nonce in the SR (receiver)."""

    def proof_is_seen(migration: str) -> Awaitable[bool]:
        """Whether the sender has answered the nonce by one of his own in the SR (step 3.3): then he sees it."""

    def forget_proof(migration: str) -> Awaitable[None]:
        """Remove the nonce again, and the sender's."""

    def vdi_copy(
        uuid: str, url: TargetUrl, ref: str, proof: SameDiskProof | None, force_copy: bool = False
    ) -> Awaitable[None]:
        """VDI.copy (steps 3.1 to 3.5): begin to copy this VDI, active or not, into the LUN, as the task `ref`. Fires
        when the copy has been started or failed to start; follow it by copy_state. `proof` None: never the same
        disk."""

    def copy_state(ref: str) -> Awaitable[CopyStatus]:
        """Task.get_state (step 3.6). HandleInvalid for an unknown ref."""

    def copy_replace(ref: str, url: TargetUrl) -> Awaitable[None]:
        """After fail-over to another URI: replace the copier by one that uses `url`; the same job goes on."""

    def copy_finish(ref: str) -> Awaitable[None]:
        """For a VDI that no domain uses (halted VM): end a copy that is ready; it becomes finished."""

    def copy_cancel(ref: str) -> Awaitable[None]:
        """Task.cancel: end the copy, whatever its state; the VDI and its domain are not disturbed. Never
        hangs, repeatable; the ref is forgotten afterwards."""


class IShowsImages(Interface):
    """What an SR offers in addition to ISR where a VDI's bytes can be seen as a file (suspend images)."""

    def view_open(uuid: str) -> Awaitable[Path]:
        """A file, or a block device, of the VDI's size that shows its bytes, to read and to write. The VDI must not be
        written to by anybody else. Repeatable. VdiMissing, SrBackendFailure."""

    def view_close(uuid: str) -> Awaitable[None]:
        """What was written, and made durable by fsync, is in the VDI; the file is gone. Repeatable. A view that was
        open when the daemon ended is closed by the next one."""


class IMovesImages(Interface):
    """What an SR offers in addition to ISR where the images of its VDIs may be exchanged under a running domain
    (storage motion). `to` is the uuid of a fresh VDI of the same size in the SR `other`, which offers this too."""

    def move_begin(uuid: str, other: ISR, to: str) -> Awaitable[None]:
        """Begin to copy the VDI, attached or not. CopyFailed, SrBackendFailure, VdiInUse."""

    def move_status(uuid: str, other: ISR, to: str) -> Awaitable[MoveStatus]:
        """Where it is. CopyFailed when its datapath is gone."""

    def move_settle(uuid: str, other: ISR, to: str) -> Awaitable[None]:
        """Of a move that is ready: what was written so far is in the new image for good, whatever dies from here on. A
        flush of the domain reaches the old image only, so the domain has to stand still from before this until
        `move_pivot` for the new image to be whole. CopyFailed."""

    def move_pivot(uuid: str, other: ISR | None, to: str) -> Awaitable[None]:
        """Put the new image in the old one's place; for who uses the VDI nothing changes. Repeatable, also after a
        restart and when the datapath died: then the new image is whole, and nothing is to be done, so its SR need not
        be attached (None). CopyFailed: the old image stays. SrBackendFailure: nobody knows, ask again."""

    def move_cancel(uuid: str, other: ISR | None, to: str) -> Awaitable[None]:
        """End it, in whatever state before the pivot. Repeatable; `other` as in `move_pivot`."""
