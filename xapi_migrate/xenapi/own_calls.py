"""What is added to XenAPI's shipped data model: two calls of the migration sequence that it does not have, VM.receive
and VM.migrate; and the classes that clients fetch when they connect, of which there is never an object here."""

from __future__ import annotations

from functools import cache

import attrs

from xapi_migrate.xenapi.datamodel import DataModel, Field, Message, ModelClass, Param, shipped
from xapi_migrate.xenapi.types import parse_type

_OPTIONS = Param("options", parse_type("(string -> string) map"), required=False, default={})

RECEIVE = Message(
    "VM",
    "receive",
    (Param("sr", parse_type("SR ref")), _OPTIONS),
    parse_type("string set"),
)
"""Step 1.2: make an offer to receive a VM, its disks to be put into `sr`. The URI list. Not in the background: it holds
a capability, which a task's record would show to everybody and keep on disk."""

MIGRATE = Message(
    "VM",
    "migrate",
    (
        Param("vm", parse_type("VM ref")),
        Param("uris", parse_type("string set")),
        # the values are SRs of the receiver, which may be another pool: their references mean nothing here
        Param("vdi_sr_map", parse_type("(VDI ref -> string) map")),
        _OPTIONS,
    ),
    parse_type("VM ref"),
    is_async=True,
    label="VM.migrate_send",
)
"""Step 1.4: move `vm` to where the offer `uris` leads. The VM's reference there. Its task is labelled as
clients expect the task of a migration to be, so that they show it."""


EMPTY_CLASSES = (
    "host_crashdump", "host_patch", "pool_patch", "pool_update", "Bond", "VLAN", "VMPP", "VMSS", "tunnel", "DR_task",
    "PGPU", "PUSB", "USB_group", "Feature", "SDN_controller", "network_sriov", "PVS_site", "PVS_server", "PVS_proxy",
    "PVS_cache_storage", "Cluster", "Cluster_host", "Certificate", "Repository",
)  # fmt: skip
"""XenCenter's older versions fetch all objects of each class that they know, and give up where one is not known."""


def _empty_class(name: str) -> ModelClass:
    this = Param("self", parse_type(f"{name} ref"))
    messages = (
        Message(name, "get_all", (), parse_type(f"{name} ref set"), kind="object"),
        Message(name, "get_all_records", (), parse_type(f"({name} ref -> {name} record) map"), kind="object"),
        Message(name, "get_record", (this,), parse_type(f"{name} record"), kind="object"),
        Message(name, "get_by_uuid", (Param("uuid", parse_type("string")),), parse_type(f"{name} ref"), kind="object"),
    )
    fields = {"uuid": Field("uuid", parse_type("string"), "RO/runtime", "")}
    return ModelClass(name, fields, {message.name: message for message in messages})


@cache
def data_model() -> DataModel:
    """The data model of this server: the shipped one and what is added here."""
    model = shipped()
    vm, host = model.classes["VM"], model.classes["host"]
    receive = attrs.evolve(host.messages["migrate_receive"], is_async=False)  # for the reason that RECEIVE has
    ours = {
        "VM": attrs.evolve(vm, messages={**vm.messages, RECEIVE.name: RECEIVE, MIGRATE.name: MIGRATE}),
        "host": attrs.evolve(host, messages={**host.messages, receive.name: receive}),
    }
    empty = {name: _empty_class(name) for name in EMPTY_CLASSES if name not in model.classes}
    return attrs.evolve(model, classes={**empty, **model.classes, **ours})
