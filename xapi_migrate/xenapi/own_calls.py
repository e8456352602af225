"""The two calls of the migration sequence that XenAPI's data model does not have: VM.receive and VM.migrate."""

from __future__ import annotations

from functools import cache

import attrs

from xapi_migrate.xenapi.datamodel import DataModel, Message, Param, shipped
from xapi_migrate.xenapi.types import parse_type

_OPTIONS = Param("options", parse_type("(string -> string) map"), required=False, default={})

RECEIVE = Message(
    "VM",
    "receive",
    (Param("sr", parse_type("SR ref")), _OPTIONS),
    parse_type("string set"),
    is_async=True,
)
"""Step 1.2: make an offer to receive a VM, its disks to be put into `sr`. The URI list."""

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


@cache
def data_model() -> DataModel:
    """The data model of this server: the shipped one and our own calls."""
    model = shipped()
    vm = model.classes["VM"]
    messages = {**vm.messages, RECEIVE.name: RECEIVE, MIGRATE.name: MIGRATE}
    return attrs.evolve(model, classes={**model.classes, "VM": attrs.evolve(vm, messages=messages)})
