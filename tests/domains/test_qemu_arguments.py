"""QEMU's command line: the same spec gives the same hardware."""

from __future__ import annotations

import attrs
import pytest

from xapi_migrate.domains import qemu_arguments
from xapi_migrate.domains.folders import spec_from_json, spec_to_json
from xapi_migrate.domains.interfaces import DomainDisk, DomainNic, DomainSpec
from xapi_migrate.domains.qemu_arguments import arguments, disk_links
from xapi_migrate.domains.qemu_config import QEMUConfig

SPEC = DomainSpec(
    domain_id="3b0e0f6e-0000-4000-8000-000000000001",
    vm_uuid="3b0e0f6e-0000-4000-8000-000000000002",
    name="web, first",
    memory=256 << 20,
    vcpus=2,
    disks=(
        DomainDisk("1", "/sr/b.sock", "b", read_only=True, bootable=False),
        DomainDisk("0", "/sr/a.sock", "a", serial="a-serial-number-that-is-long"),
    ),
    nics=(DomainNic("0", "52:54:00:00:00:01", bridge="br0"), DomainNic("1", "52:54:00:00:00:02")),
    console_path="/var/log/console, of web",
)


def argv(spec: DomainSpec = SPEC, incoming: bool = False) -> list[str]:
    return arguments(spec, QEMUConfig(), incoming=incoming, taps={"0": 7})


def after(option: str, args: list[str]) -> list[str]:
    return [args[n + 1] for n, word in enumerate(args) if word == option]


def test_hardware_does_not_depend_on_the_host():
    here = argv()
    elsewhere = attrs.evolve(
        SPEC,
        domain_id="another",
        console_path="/elsewhere",
        disks=tuple(attrs.evolve(disk, socket_path=f"/elsewhere{disk.socket_path}") for disk in SPEC.disks),
    )
    there = argv(elsewhere, incoming=True)
    for option in ("-machine", "-cpu", "-device", "-m", "-smp", "-uuid"):
        assert after(option, here) == after(option, there)
    assert there[-3:] == ["-S", "-incoming", "defer"]


def test_disks_have_places_of_their_own_and_keep_their_requests():
    first, second, *_ = after("-device", argv())
    assert "id=vbd0,addr=0x9," in first
    assert "id=vbd1,addr=0xa," in second
    assert "werror=stop,rerror=stop" in first
    assert "werror=report,rerror=stop" in second  # it is read-only
    assert first.endswith("serial=a-serial-number-that,bootindex=0")
    assert "bootindex" not in second
    node, read_only = after("-blockdev", argv())
    assert "read-only=off" in node
    assert "read-only=on" in read_only
    assert "reconnect-delay=604800" in node


def test_commas_in_names_are_kept():
    assert after("-name", argv()) == ["guest=web,, first"]
    assert after("-chardev", argv()) == ["file,id=console,path=/var/log/console,, of web,append=on"]


def test_no_path_of_a_disk_is_in_the_command_line():
    assert not any("/sr/" in word for word in argv())
    assert {name: str(target) for name, target in disk_links(SPEC).items()} == {
        "disk0.sock": "/sr/a.sock",
        "disk1.sock": "/sr/b.sock",
    }


def test_network_interfaces():
    taps, interfaces = after("-netdev", argv()), after("-device", argv())[2:]
    assert taps == ["tap,id=net0,fd=7"]
    assert interfaces == [
        "virtio-net-pci,id=vif0,mac=52:54:00:00:00:01,addr=0x2,romfile=,netdev=net0",
        "virtio-net-pci,id=vif1,mac=52:54:00:00:00:02,addr=0x3,romfile=",
    ]


@pytest.mark.parametrize(
    ("memory", "config", "size"),
    [
        (256 << 20, QEMUConfig(), "262136k"),
        ((256 << 20) - 4096, QEMUConfig(), "262136k"),  # QEMU would round it up
        ((256 << 20) + 8192, QEMUConfig(), "262152k"),
        (256 << 20, QEMUConfig(accelerators=("tcg,thread=single",)), "262136k"),
        (256 << 20, QEMUConfig(accelerators=("no-kvm", "tcg")), "262136k"),
        (256 << 20, QEMUConfig(accelerators=("kvm", "tcg")), "262144k"),
        (256 << 20, QEMUConfig(exact_memory=True), "262144k"),
    ],
)
def test_the_memory_of_emulated_domains_is_no_multiple_of_256_kib(monkeypatch, tmp_path, memory, config, size):
    (tmp_path / "kvm").touch()
    works = "no-kvm" not in config.accelerators
    monkeypatch.setattr(qemu_arguments, "_KVM", str(tmp_path / ("kvm" if works else "none")))
    config = attrs.evolve(config, accelerators=tuple(name.removeprefix("no-") for name in config.accelerators))
    argv = arguments(attrs.evolve(SPEC, memory=memory), config, incoming=False)
    assert after("-m", argv) == [f"size={size}"]


def test_pinned_hardware_wins_over_the_default():
    assert after("-machine", argv()) == ["pc-i440fx-7.2"]
    pinned = attrs.evolve(SPEC, machine="pc-i440fx-6.2", cpu="Nehalem")
    assert after("-machine", argv(pinned)) == ["pc-i440fx-6.2"]
    assert after("-cpu", argv(pinned)) == ["Nehalem"]


@pytest.mark.parametrize("device", ["23", "x", "-1", ""])
def test_a_disk_that_has_no_place(device):
    spec = attrs.evolve(SPEC, disks=(DomainDisk(device, "/s", "e"),))
    with pytest.raises(ValueError, match="there is no place for disk"):
        argv(spec)


def test_a_description_survives_its_file():
    assert spec_from_json(spec_to_json(SPEC)) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"machine": "pc,kernel=/etc/shadow"},
        {"machine": "pc firmware=x"},
        {"machine": "-help"},
        {"cpu": "qemu64,+svm"},
        {"cpu": "x" * 65},
        {"nics": (DomainNic("0", "52:54:00:00:00:01,netdev=net1"),)},
        {"nics": (DomainNic("0", ""),)},
    ],
)
def test_what_a_client_named_brings_no_options_with_it(change):
    with pytest.raises(ValueError, match="is no "):
        argv(attrs.evolve(SPEC, **change))


def test_names_are_names():
    named = argv(attrs.evolve(SPEC, machine="pc-i440fx-7.2", cpu="EPYC-Rome-v2"))
    assert after("-machine", named) == ["pc-i440fx-7.2"] and after("-cpu", named) == ["EPYC-Rome-v2"]
