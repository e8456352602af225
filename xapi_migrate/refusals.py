"""Why a VM may not be migrated, told before anything has been done: those entries of the catalogue (errors.py) that the
calls of XenAPI's own clients need, by the codes which those clients know."""

from __future__ import annotations

from xapi_migrate.errors import MigrateError, catalogue


@catalogue
class NoOffer(MigrateError):
    """The destination cannot be reached by this host: {reason}"""

    code = "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
    parameters = ("reason",)
    status = 409
    reason: str


@catalogue
class OperationBlocked(MigrateError):
    """The operation is blocked on {ref}: {reason}"""

    code = "OPERATION_BLOCKED"
    parameters = ("ref", "reason")
    status = 409
    ref: str
    reason: str


@catalogue
class DuplicateVM(MigrateError):
    """A VM of the uuid that is to be restored is here already, {vm}, and an import takes no VM's place."""

    code = "DUPLICATE_VM"
    parameters = ("vm",)
    status = 409
    vm: str


@catalogue
class DuplicateMacSeed(MigrateError):
    """Another VM has the mac_seed {seed} already."""

    code = "DUPLICATE_MAC_SEED"
    parameters = ("seed",)
    status = 409
    seed: str


@catalogue
class VdiLocationMissing(MigrateError):
    """A disk of the VM that is to be imported, VDI {location} of SR {sr}, is not here."""

    code = "VDI_LOCATION_MISSING"
    parameters = ("sr", "location")
    status = 409
    sr: str
    location: str


@catalogue
class ImportBroken(MigrateError):
    """The VM's metadata broke off before it was all here."""

    code = "IMPORT_ERROR_PREMATURE_EOF"
    status = 400

    def failure(self) -> list[str]:
        return [self.code]


@catalogue
class VbdIsEmpty(MigrateError):
    """There is no medium in the drive {vbd}."""

    code = "VBD_IS_EMPTY"
    parameters = ("vbd",)
    status = 409
    vbd: str


@catalogue
class VbdNotEmpty(MigrateError):
    """There is a medium in the drive {vbd} already: eject it first."""

    code = "VBD_NOT_EMPTY"
    parameters = ("vbd",)
    status = 409
    vbd: str


@catalogue
class VbdNotRemovable(MigrateError):
    """The VBD {vbd} is a disk, and only a CD drive's medium is changed."""

    code = "VBD_NOT_REMOVABLE_MEDIA"
    parameters = ("vbd",)
    status = 409
    vbd: str


@catalogue
class MacInvalid(MigrateError):
    """{mac!r} is no interface's MAC address: six pairs of hexadecimal digits with colons between, the first even."""

    code = "MAC_INVALID"
    parameters = ("mac",)
    mac: str


@catalogue
class DeviceExists(MigrateError):
    """The VM {vm} has a device {device} already, or there is no such device."""

    code = "DEVICE_ALREADY_EXISTS"
    parameters = ("device",)
    status = 409
    vm: str
    device: str


@catalogue
class DeviceAttached(MigrateError):
    """The device {device} is attached already."""

    code = "DEVICE_ALREADY_ATTACHED"
    parameters = ("device",)
    status = 409
    device: str


@catalogue
class DeviceDetached(MigrateError):
    """The device {device} is not attached."""

    code = "DEVICE_ALREADY_DETACHED"
    parameters = ("device",)
    status = 409
    device: str


@catalogue
class VmIsTemplate(MigrateError):
    """The VM {vm} is a template: {operation} is not possible."""

    code = "VM_IS_TEMPLATE"
    parameters = ("vm", "operation")
    status = 409
    vm: str
    operation: str


@catalogue
class VmIsSnapshot(MigrateError):
    """The VM {vm} is a snapshot: {operation} is not possible."""

    code = "VM_IS_SNAPSHOT"
    parameters = ("vm", "operation")
    status = 409
    vm: str
    operation: str


@catalogue
class VmIsImmobile(MigrateError):
    """The VM {vm} is configured to stay where it is (platform:nomigrate)."""

    code = "VM_IS_IMMOBILE"
    parameters = ("vm",)
    status = 409
    vm: str


@catalogue
class VmHasDevice(MigrateError):
    """The VM {vm} has a {device}, which cannot move with it."""

    status = 409
    vm: str
    device: str
    device_code: str

    def failure(self) -> list[str]:
        return [self.device_code, self.vm]


@catalogue
class VdiCannotMove(MigrateError):
    """The VDI {vdi} cannot be moved: {reason}"""

    status = 409
    vdi: str
    reason: str
    reason_code: str

    def failure(self) -> list[str]:
        return [self.reason_code, self.vdi]


@catalogue
class HostDisabled(MigrateError):
    """The host {host} is disabled: it starts and takes no VMs."""

    code = "HOST_DISABLED"
    parameters = ("host",)
    status = 409
    host: str


@catalogue
class NotEnoughCpus(MigrateError):
    """The VM has {vcpus} virtual processors and the host {pcpus} processors."""

    code = "HOST_NOT_ENOUGH_PCPUS"
    parameters = ("vcpus", "pcpus")
    status = 409
    vcpus: int
    pcpus: int


@catalogue
class OtherVersion(MigrateError):
    """The host {host} speaks another version of the migration protocol, so VM {vm} cannot go there."""

    code = "VM_HOST_INCOMPATIBLE_VERSION_MIGRATE"
    # in the order in which servers send them, which is not the data model's
    parameters = ("vm", "host")
    status = 409
    host: str
    vm: str


@catalogue
class HostCannotAttachNetwork(MigrateError):
    """The host {host} has no interface on the network {network}."""

    code = "HOST_CANNOT_ATTACH_NETWORK"
    parameters = ("host", "network")
    status = 409
    host: str
    network: str


@catalogue
class BridgeNotAvailable(MigrateError):
    """The bridge {bridge} of network {network} cannot be used on this host: {reason}"""

    code = "BRIDGE_NOT_AVAILABLE"
    parameters = ("bridge",)
    status = 409
    bridge: str
    network: str
    reason: str


@catalogue
class NetworkInUse(MigrateError):
    """The network {network} has {field}: {refs}"""

    status = 409
    network: str
    field: str
    refs: tuple[str, ...]

    def failure(self) -> list[str]:
        return [f"NETWORK_CONTAINS_{self.field.removesuffix('s')}", *self.refs]


@catalogue
class PifHasNoConfiguration(MigrateError):
    """The interface {pif} has no network configuration."""

    code = "PIF_HAS_NO_NETWORK_CONFIGURATION"
    parameters = ("pif",)
    status = 409
    pif: str


@catalogue
class InterfaceHasNoIp(MigrateError):
    """The interface {pif} has no address."""

    code = "INTERFACE_HAS_NO_IP"
    parameters = ("pif",)
    status = 409
    pif: str


@catalogue
class VmRequiresNetwork(MigrateError):
    """The VM {vm} needs the network {network}, which is not on that host."""

    code = "VM_REQUIRES_NETWORK"
    parameters = ("vm", "network")
    status = 409
    vm: str
    network: str


@catalogue
class VmRequiresSr(MigrateError):
    """The VM {vm} needs the SR {sr}, which is not attached to that host."""

    code = "VM_REQUIRES_SR"
    parameters = ("vm", "sr")
    status = 409
    vm: str
    sr: str


@catalogue
class NoHostsAvailable(MigrateError):
    """There is no other host that the VMs could go to."""

    code = "NO_HOSTS_AVAILABLE"
    status = 409


@catalogue
class VdiNeedsVm(MigrateError):
    """The VDI {vdi} is a disk of no VM: only disks of VMs are moved."""

    code = "VDI_NEEDS_VM_FOR_MIGRATE"
    parameters = ("vdi",)
    status = 409
    vdi: str


@catalogue
class MigrationNotBegun(MigrateError):
    """This host's daemon ended while the migration waited its turn. Nothing had begun, the VM is where it was: begin it
    again."""

    code = "VM_MIGRATE_FAILED"
    status = 409
    vm: str = ""

    def failure(self) -> list[str]:
        return [self.code, self.vm, "", "", str(self)]


@catalogue
class SrCannotMigrate(MigrateError):
    """The SR {sr} cannot take part in storage motion: its backend has a way of its own to its disks."""

    code = "SR_DOES_NOT_SUPPORT_MIGRATION"
    parameters = ("sr", "capabilities")
    status = 409
    sr: str
    capabilities: str = ""


@catalogue
class VmNoSuspendSr(MigrateError):
    """The memory of VM {vm} has no SR to go to: set suspend_SR of the VM, or suspend_image_SR of the pool."""

    code = "VM_NO_SUSPEND_SR"
    parameters = ("vm",)
    status = 409
    vm: str


@catalogue
class VmHasNoSuspendVdi(MigrateError):
    """The VM {vm} is Suspended and has no suspend VDI: only VM.hard_shutdown is left for it."""

    code = "VM_HAS_NO_SUSPEND_VDI"
    parameters = ("vm",)
    status = 409
    vm: str


@catalogue
class SuspendImageNotAccessible(MigrateError):
    """The memory of VM {vm} cannot be read from its suspend VDI {vdi}: {reason}"""

    code = "SUSPEND_IMAGE_NOT_ACCESSIBLE"
    parameters = ("vdi",)
    status = 409
    vdi: str
    vm: str
    reason: str


@catalogue
class SrOperationNotSupported(MigrateError):
    """The SR {sr} does not do {operation}."""

    code = "SR_OPERATION_NOT_SUPPORTED"
    parameters = ("sr",)
    status = 409
    sr: str
    operation: str


@catalogue
class SrHasPbd(MigrateError):
    """The SR {sr} is attached at other hosts of the pool: unplug their PBDs first."""

    code = "SR_HAS_PBD"
    parameters = ("sr",)
    status = 409
    sr: str


@catalogue
class HostOffline(MigrateError):
    """The host {host} does not answer, so what is on it cannot be reached."""

    code = "HOST_OFFLINE"
    parameters = ("host",)
    status = 409
    host: str


@catalogue
class NotSettled(MigrateError):
    """{call} of VM {vm} is not settled: {reason} It is tried again, at once when an SR is plugged, and until then the
    VM is busy. `xapi-migrate doctor` lists it, and `xapi-migrate force-settle --outcome given-up` ends it."""

    call: str
    vm: str
    reason: str
