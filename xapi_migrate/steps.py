"""The migration sequence, step by step: five phases, each step with its id.

Code, logs and docs/protocol.md name a step by this id and nothing else.
"""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """One step of the sequence: its id ("phase.number") and what happens, T sending and R receiving."""

    LOGIN_RECEIVER = ("1.1", "Client -> R: session.login_with_password")
    VM_RECEIVE = ("1.2", "Client -> R: VM.receive(s1, SR) <- URI list")
    LOGIN_SENDER = ("1.3", "Client -> T: session.login_with_password")
    VM_MIGRATE = ("1.4", "Client -> T: VM.migrate(s2, vm, URI list, VDI to SR map)")
    HEAD = ("1.5", "T -> R: HTTP HEAD URI")
    PUT_METADATA = ("2.1", "T -> R: HTTP PUT URI/metadata")
    GET_DISK = ("2.2", "T -> R: HTTP GET URI/disk/0")
    GET_URL = ("2.3", "R: VDI.get_url(0) <- iscsi://")
    GET_DISK_NEXT = ("2.4", "T -> R: HTTP GET URI/disk/n")
    GET_URL_NEXT = ("2.5", "R: VDI.get_url(n) <- iscsi://")
    VDI_COPY = ("3.1", "T: VDI.copy(n, iscsi://, new_ref)")
    SPAWN_COPIER = ("3.2", "SM spawns the copier")
    SAME_DISK = ("3.3", "copier: does nothing if both are the same disk")
    ATTACH_LUN = ("3.4", "else copier: attaches the iSCSI LUN")
    LOG_DIRTY = ("3.5", "else copier: switches the datapath into log-dirty mode")
    GET_STATE = ("3.6", "T: Task.get_state(new_ref)")
    ALL_READY = ("3.7", "T: waits until all copies are ready")
    PUT_MEMORY = ("4.1", "T -> R: HTTP PUT URI/memory")
    VDI_ATTACH = ("4.2", "R: VDI.attach")
    SUSPENDED = ("4.3", "T: waits for the domain to finally suspend")
    DEACTIVATE = ("4.4", "T: VDI.deactivate(n)")
    ALL_FINISHED = ("4.5", "T: waits until all copies are finished")
    DONE = ("5.1", "T -> R: HTTP PUT URI/control done")
    POWER_STATE = ("5.2", "R: resynchronises the VM's power state")
    DESTROY_DOMAIN = ("5.3", "T: destroys the domain")
    VDI_DETACH = ("5.4", "T: VDI.detach")

    @property
    def id(self) -> str:
        return self.value[0]

    @property
    def phase(self) -> int:
        """1 connection, 2 preparation, 3 bulk disk transfer, 4 memory transfer, 5 completion."""
        return int(self.value[0][0])

    @property
    def text(self) -> str:
        return self.value[1]
