"""What settings may be beyond their types: what `check` refuses would otherwise be found at the first migration."""

from __future__ import annotations

import math
from ipaddress import ip_network

import attrs

from .config import Config
from .sm.timeouts import NOPS

MOST_PORTS = 65535
CHOICES = {
    "domains": ("qemu", "xen"),
    "xen_tsc_mode": ("default", "always_emulate", "native", "native_paravirt"),
    "accelerators": ("kvm", "tcg"),
    "without_bridge": ("refuse", "disconnect"),
    "schemes": ("https", "http"),
    "api_socket_mode": ("0600", "0660"),
}
LEAST = {"iscsi_port": 0, "sends_at_once": 0, "receives_at_once": 0, "metadata_limit": 1, "request_limit": 1}
LEAST_TIMES = {"iscsi_silence": NOPS, "memory_silence": 2}
FILES = ("certificate", "private_key", "authorities", "upstream_authorities")
NOT_EMPTY = ("listen", "schemes", "accelerators")


def check(config: Config) -> str:
    """The sentence that names the first setting that cannot be used; "" if all can."""
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one.partition(",")[0] not in choices:  # tcg,thread=single
                return f"{name} is {' or '.join(choices)}, not {one!r}."
    for name in NOT_EMPTY:
        if not getattr(config, name):
            return f"{name} is empty: it needs one at least."
    for name, least in LEAST.items():
        if getattr(config, name) < least:
            return f"{name} is {least} or more, not {getattr(config, name)}."
    if config.iscsi_port > MOST_PORTS:
        return f"iscsi_port is {MOST_PORTS} at most, not {config.iscsi_port}."
    return _check_times(config) or _check_networks(config) or _check_files(config)


def _check_times(config: Config) -> str:
    times = {f"times.{name}": value for name, value in attrs.asdict(config.times).items()}
    for name, value in {"member_interval": config.member_interval, "member_lost": config.member_lost, **times}.items():
        if not (value > 0 and math.isfinite(value)):
            return f"{name} is a number of seconds above 0, not {value}."
    for name, least in LEAST_TIMES.items():
        if getattr(config.times, name) < least:
            return f"times.{name} is {least} or more, not {getattr(config.times, name)}."
    return ""


def _check_networks(config: Config) -> str:
    for network in config.denied_networks:
        try:
            ip_network(network)
        except ValueError as error:
            return f"denied_networks is a list of networks such as 192.0.2.0/24: {error}."
    return ""


def _check_files(config: Config) -> str:
    if bool(config.certificate) != bool(config.private_key):
        return "certificate and private_key are set together or not at all."
    for name in FILES:
        path = getattr(config, name)
        if path:
            try:
                (config.state_dir / path).read_bytes()
            except OSError as error:
                return f"{name} names {path}, which cannot be read: {error.strerror}."
    return ""
