"""What the other host says, changed at random places: VM metadata at the receiver, disks and answers at the sender."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from tests.security.test_calls import SEED
from xapi_migrate.errors import ImportError_
from xapi_migrate.migration.metadata_export import export_vm
from xapi_migrate.migration.metadata_import import IncomingVM, import_vm
from xapi_migrate.migration.metadata_xml import read_value, write_value
from xapi_migrate.testing.two_hosts import TwoHosts
from xapi_migrate.uris import wire

JUNK: tuple[Any, ...] = (
    "", "x", "x" * 5000, "-1", "1", "99999999999999999999", "0x10", "1e9", "OpaqueRef:NULL", "Ref:0", "Ref:1",
    "../../etc", "/dev/sda", "\u202e", True, False, [], {}, [[]], ["Ref:0"] * 300, {"a": "b"}, 0.5,
    {str(n): "x" for n in range(300)},
)  # fmt: skip


@pytest.fixture(scope="module")
def document() -> bytes:
    world = TwoHosts(Clock())
    vm = world.source.new_vm()
    records = world.source.records
    disks = list(records.get("VM", vm)["VBDs"])
    return export_vm(records, vm, disks, {}, {}, {"stream": "qemu", "machine": "pc", "cpu": "qemu64"})


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in it."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


def test_a_document_that_was_changed_is_imported_or_refused(document: bytes) -> None:
    dice, whole = random.Random(SEED), read_value(document)
    assert isinstance(import_vm(document), IncomingVM)
    taken = refused = 0
    for _ in range(400):
        value = copy.deepcopy(whole)
        for _ in range(dice.randrange(1, 4)):
            container, key = dice.choice(places(value))
            if dice.random() < 0.2 and isinstance(container, dict):
                container.pop(key, None)
            else:
                container[key] = copy.deepcopy(dice.choice(JUNK))
        try:
            assert isinstance(import_vm(write_value(value)), IncomingVM)
            taken += 1
        except ImportError_:
            refused += 1
    assert taken > 20 < refused


def test_bytes_that_were_changed_are_imported_or_refused(document: bytes) -> None:
    dice = random.Random(SEED)
    refused = 0
    for _ in range(1500):
        broken = bytearray(document)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(broken))
            match dice.randrange(4):
                case 0:
                    broken[at] = dice.randrange(256)
                case 1:
                    del broken[at : at + dice.randrange(200)]
                case 2:
                    broken[at:at] = broken[:at][-200:]
                case _:
                    broken[at:at] = dice.choice(
                        [b"<!DOCTYPE a>", b"&a;", b"<![CDATA[", b"\0", b"<a/>", b"\xff", b"&#0;"]
                    )
        try:
            import_vm(bytes(broken))
        except ImportError_:
            refused += 1
    assert refused > 500


DANGEROUS = {
    "platform": ("pci", "hvm_serial", "machine", "cpu", "device-model", "featureset", "generation-id", "nested-virt"),
    "other_config": (
        "pci", "hvm_serial", "is_system_domain", "storage_driver_domain", "backend-local", "HideFromXenCenter",
        "config_drive", "xapi-internal", "vgpu_pci", "auto_update_drivers",
    ),
    "HVM_boot_params": ("firmware", "kernel"),
    "xenstore_data": ("backend", "device/vbd", "../vm-data"),
}  # fmt: skip
"""Keys through which other toolstacks were made to open a host's files, devices and domains (XSA-489)."""


def test_keys_that_name_files_devices_or_domains_do_not_cross(document: bytes) -> None:
    value = read_value(document)
    for item in value["objects"]:
        snapshot = item["snapshot"]
        if item["class"] == "VM":
            for field, keys in DANGEROUS.items():
                snapshot[field] = {**snapshot.get(field, {}), **dict.fromkeys(keys, "/etc/shadow"), "folder": "/a"}
        if item["class"] in ("VBD", "VIF", "VDI"):
            snapshot["other_config"] = {
                "backend-local": "/etc/shadow",
                "backend-kind": "x",
                "owner": "",
                "folder": "/a",
            }
            snapshot["location"] = snapshot["sm_config"] = snapshot["backend-local"] = "/etc/shadow"
    vm = import_vm(write_value(value))
    assert vm.fields["other_config"]["folder"] == "/a"  # the control: what may cross does
    assert "/etc/shadow" not in repr(vm)


DISK: dict[str, Any] = {
    "number": 0, "vdi_uuid": "u", "sr_uuid": "s", "virtual_size": 512, "found": False,
    "url": "iscsi://10.0.0.1:3260/iqn.a:b/1", "username": "user", "password": "secret",
    "proof": {"name": "n", "value": "v"},
}  # fmt: skip


@pytest.mark.parametrize("read", [wire.read_disk, wire.decode])
def test_answers_that_were_changed_are_read_or_malformed(read: Callable[[bytes], Any]) -> None:
    dice = random.Random(SEED)
    wire.read_disk(json.dumps(DISK).encode())
    for _ in range(2000):
        value = copy.deepcopy(DISK)
        for _ in range(dice.randrange(1, 3)):
            container, key = dice.choice(places(value))
            container[key] = copy.deepcopy(dice.choice([*JUNK, None, 2**80, -1, 1.5, float("inf"), "a\nb", "\ud800"]))
        body = bytearray(json.dumps(value).encode())
        if dice.random() < 0.3:
            at = dice.randrange(len(body))
            body[at : at + dice.randrange(9)] = dice.choice([b"", b"\0", b"\xff", b'"', b"[" * 5000, b"NaN"])
        try:
            read(bytes(body))
        except wire.Malformed as why:
            assert "secret" not in str(why)
