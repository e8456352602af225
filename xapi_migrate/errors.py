"""The one catalogue of errors.

Each class is one thing that can go wrong. Its docstring is the sentence that a person reads, with
the fields filled in; `code` and `parameters` are what a XenAPI client receives. Only the XenAPI and
HTTP edges translate; everything in between raises and catches these.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar, dataclass_transform

import attrs

_E = TypeVar("_E", bound="MigrateError")


@dataclass_transform()
def catalogue(cls: type[_E]) -> type[_E]:
    """Class decorator of every entry: an attrs exception whose text is its docstring, filled in."""
    return attrs.define(auto_exc=True, slots=False, eq=False)(cls)


class MigrateError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    parameters: ClassVar[tuple[str, ...]] = ()
    status: ClassVar[int] = 500
    """The HTTP status that a migration URI answers with."""

    def __str__(self) -> str:
        return " ".join((type(self).__doc__ or "").split()).format(**vars(self))

    def failure(self) -> list[str]:
        """The XenAPI ErrorDescription: the code, then its parameters, all strings."""
        if not self.parameters:
            return [self.code] if self.code != "INTERNAL_ERROR" else [self.code, str(self)]
        return [self.code, *(str(getattr(self, name)) for name in self.parameters)]


@catalogue
class RemoteError(MigrateError):
    """{message}"""

    # An error that another program reported in XenAPI's form, carried on unchanged.
    description: list[str]
    message: str

    def failure(self) -> list[str]:
        return list(self.description)


@catalogue
class InternalError(MigrateError):
    """{message}"""

    message: str


# -- calls and records ------------------------------------------------------------------------


@catalogue
class HandleInvalid(MigrateError):
    """There is no {cls} with the reference {ref}."""

    code = "HANDLE_INVALID"
    parameters = ("cls", "ref")
    status = 404
    cls: str
    ref: str


@catalogue
class UuidInvalid(MigrateError):
    """There is no {cls} with the uuid {uuid}."""

    code = "UUID_INVALID"
    parameters = ("cls", "uuid")
    status = 404
    cls: str
    uuid: str


@catalogue
class SessionInvalid(MigrateError):
    """The session is not known here, has ended or has expired: log in again."""

    code = "SESSION_INVALID"
    parameters = ("session",)
    status = 401
    session: str


@catalogue
class SessionNotRegistered(MigrateError):
    """The session is not registered for events: call event.register before event.next."""

    code = "SESSION_NOT_REGISTERED"
    parameters = ("session",)
    status = 409
    session: str


@catalogue
class SessionAuthenticationFailed(MigrateError):
    """The user name {username} and the password do not go together."""

    code = "SESSION_AUTHENTICATION_FAILED"
    parameters = ("username", "message")
    status = 401
    username: str
    message: str = "Authentication failure"


@catalogue
class MessageMethodUnknown(MigrateError):
    """There is no call named {method}."""

    code = "MESSAGE_METHOD_UNKNOWN"
    parameters = ("method",)
    status = 404
    method: str


@catalogue
class MessageParameterCountMismatch(MigrateError):
    """{method} takes {expected} parameters after the session, not {received}."""

    code = "MESSAGE_PARAMETER_COUNT_MISMATCH"
    parameters = ("method", "expected", "received")
    status = 400
    method: str
    expected: int
    received: int


@catalogue
class FieldTypeError(MigrateError):
    """The parameter or field {field} has the wrong type."""

    code = "FIELD_TYPE_ERROR"
    parameters = ("field",)
    status = 400
    field: str


@catalogue
class InvalidValue(MigrateError):
    """The value {value} is not one that {field} can have."""

    code = "INVALID_VALUE"
    parameters = ("field", "value")
    status = 400
    field: str
    value: str


@catalogue
class MapDuplicateKey(MigrateError):
    """The map {field} of {cls} {uuid} has the key {key} already."""

    code = "MAP_DUPLICATE_KEY"
    parameters = ("cls", "field", "uuid", "key")
    status = 409
    cls: str
    field: str
    uuid: str
    key: str


@catalogue
class OperationNotAllowed(MigrateError):
    """{reason}"""

    code = "OPERATION_NOT_ALLOWED"
    parameters = ("reason",)
    status = 409
    reason: str


@catalogue
class OtherOperationInProgress(MigrateError):
    """The {cls} {ref} is busy with {operation}: wait for it to end, or cancel its task."""

    code = "OTHER_OPERATION_IN_PROGRESS"
    parameters = ("cls", "ref", "operation", "task")
    status = 409
    cls: str
    ref: str
    operation: str
    task: str


@catalogue
class TaskCancelled(MigrateError):
    """The task was cancelled."""

    code = "TASK_CANCELLED"
    parameters = ("task",)
    status = 409
    task: str


@catalogue
class NotImplementedHere(MigrateError):
    """{call} is not done by this server."""

    code = "NOT_IMPLEMENTED"
    parameters = ("call",)
    status = 501
    call: str


# -- virtual machines -------------------------------------------------------------------------


@catalogue
class VmBadPowerState(MigrateError):
    """The VM {vm} is {actual}, and that call needs it to be {expected}."""

    code = "VM_BAD_POWER_STATE"
    parameters = ("vm", "expected", "actual")
    status = 409
    vm: str
    expected: str
    actual: str


@catalogue
class VmMigrateFailed(MigrateError):
    """The migration of VM {vm} from {source} to {destination} failed: {reason}"""

    code = "VM_MIGRATE_FAILED"
    parameters = ("vm", "source", "destination", "reason")
    vm: str
    source: str
    destination: str
    reason: str


@catalogue
class NotEnoughMemory(MigrateError):
    """The host has {available} bytes of free memory and the VM needs {needed}."""

    code = "HOST_NOT_ENOUGH_FREE_MEMORY"
    parameters = ("needed", "available")
    status = 409
    needed: int
    available: int


@catalogue
class IncompatibleHost(MigrateError):
    """The VM {vm} cannot run on host {host}: {reason}"""

    code = "VM_INCOMPATIBLE_WITH_THIS_HOST"
    parameters = ("vm", "host", "reason")
    status = 409
    vm: str
    host: str
    reason: str


@catalogue
class DomainError(MigrateError):
    """The domain {domain} on host {host} could not {action}: {reason}"""

    domain: str
    host: str
    action: str
    reason: str


# -- storage ----------------------------------------------------------------------------------


@catalogue
class VdiNotInMap(MigrateError):
    """The VDI {vdi} has no SR to go to: name one for it in the VDI to SR map, or an SR for all in VM.receive."""

    code = "VDI_NOT_IN_MAP"
    parameters = ("vdi",)
    status = 409
    vdi: str


@catalogue
class VifNotInMap(MigrateError):
    """The VIF {vif} has no network to go to: name one for it in the VIF to network map."""

    code = "VIF_NOT_IN_MAP"
    parameters = ("vif",)
    status = 409
    vif: str


@catalogue
class SrFull(MigrateError):
    """The SR {sr} has {available} bytes left and {requested} are needed."""

    code = "SR_FULL"
    parameters = ("requested", "available")
    status = 409
    sr: str
    requested: int
    available: int


@catalogue
class SrNotAttached(MigrateError):
    """The SR {sr} is not attached to this host."""

    code = "SR_NOT_ATTACHED"
    parameters = ("sr",)
    status = 409
    sr: str


@catalogue
class SrUnknownDriver(MigrateError):
    """No storage backend named {driver} is installed here (xapi-migrate sm-list shows which are)."""

    code = "SR_UNKNOWN_DRIVER"
    parameters = ("driver",)
    status = 409
    driver: str


@catalogue
class VdiMissing(MigrateError):
    """The VDI {vdi} is not in the SR {sr}."""

    code = "VDI_MISSING"
    parameters = ("sr", "vdi")
    status = 404
    sr: str
    vdi: str


@catalogue
class VdiInUse(MigrateError):
    """The VDI {vdi} is in use ({operation})."""

    code = "VDI_IN_USE"
    parameters = ("vdi", "operation")
    status = 409
    vdi: str
    operation: str


@catalogue
class SrBackendFailure(MigrateError):
    """The storage backend failed for {what}: {reason}"""

    code = "SR_BACKEND_FAILURE"
    parameters = ("status_text", "what", "reason")
    what: str
    reason: str
    status_text: str = ""


@catalogue
class CopyFailed(MigrateError):
    """The copy of VDI {vdi} failed: {reason}"""

    code = "MIRROR_FAILED"
    parameters = ("vdi",)
    vdi: str
    reason: str


# -- the migration protocol -------------------------------------------------------------------


@catalogue
class TargetDied(MigrateError):
    """What serves disk {vdi} of VM {vm} to the sender died on host {host} (3.1 to 4.5): migrate the VM again."""

    code = "VM_MIGRATE_FAILED"
    status = 409
    vm: str
    vdi: str
    host: str

    def failure(self) -> list[str]:
        return [self.code, self.vm, "", self.host, str(self)]


@catalogue
class ImportError_(MigrateError):
    """The VM metadata cannot be used: {reason}"""

    code = "IMPORT_ERROR"
    parameters = ("reason",)
    status = 400
    reason: str


@catalogue
class UriInvalid(MigrateError):
    """{uri} is not a migration URI: {reason}"""

    code = "INVALID_VALUE"
    parameters = ("field", "reason")
    status = 400
    uri: str
    reason: str
    field: str = "uris"


@catalogue
class NoUriAnswered(MigrateError):
    """Step 1.5: none of the receiver's URIs answered 200. {reports}"""

    code = "VM_MIGRATE_CONTACT_REMOTE_SERVICE_FAILED"
    reports: str

    def failure(self) -> list[str]:
        return [self.code, self.reports]


@catalogue
class PeerSilent(MigrateError):
    """The other host did not answer {request}: {reason}"""

    code = "CANNOT_CONTACT_HOST"
    parameters = ("request", "reason")
    status = 502
    request: str
    reason: str


@catalogue
class WrongMoment(MigrateError):
    """{request} came at the wrong moment: the migration is {state}."""

    code = "OPERATION_NOT_ALLOWED"
    status = 409
    request: str
    state: str

    def failure(self) -> list[str]:
        return [self.code, str(self)]


@catalogue
class OfferTaken(MigrateError):
    """These URIs are of an offer that another VM has taken up: get new ones by VM.receive."""

    code = "VM_MIGRATE_OFFER_TAKEN"
    status = 409

    def failure(self) -> list[str]:
        return [self.code, str(self)]


@catalogue
class MigrationAborted(MigrateError):
    """The receiving host has given this migration up: {reason}"""

    code = "VM_MIGRATE_FAILED"
    status = 410
    reason: str

    def failure(self) -> list[str]:
        return [self.code, "", "", "", self.reason]


@catalogue
class HeartbeatLost(MigrateError):
    """{host} gave no sign of life for {seconds:g} seconds (last step: {step})."""

    code = "CANNOT_CONTACT_HOST"
    status = 410
    seconds: float
    step: str
    host: str = "The other host"

    def failure(self) -> list[str]:
        return [self.code, str(self)]


# -- events -----------------------------------------------------------------------------------


@catalogue
class EventsLost(MigrateError):
    """Events since that token have been forgotten: fetch everything again."""

    code = "EVENTS_LOST"
    status = 410

    def failure(self) -> list[str]:
        return [self.code]


@catalogue
class EventTokenInvalid(MigrateError):
    """{token} is not a token that event.from gave."""

    code = "EVENT_FROM_TOKEN_PARSE_FAILURE"
    parameters = ("token",)
    status = 400
    token: str


@catalogue
class EventSubscriptionInvalid(MigrateError):
    """{subscription} does not name a class of objects."""

    code = "EVENT_SUBSCRIPTION_PARSE_FAILURE"
    parameters = ("subscription",)
    status = 400
    subscription: str
