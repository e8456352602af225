"""Where settings come from, and what is said of those that cannot be used."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

from xapi_migrate.config import Config, MigrationTimes
from xapi_migrate.configuration import ConfigError, build, load, merge, setting, show
from xapi_migrate.sm.timeouts import SMTimeouts, configured


def test_defaults() -> None:
    assert build({"state_dir": "/var/lib/xm"}) == Config(Path("/var/lib/xm"))


def test_what_is_shown_can_be_read_again(tmp_path: Path) -> None:
    config = Config(
        tmp_path / 'a "quoted" place', listen=("tls:1", "tcp:2"), database="sqlite:///x", schemes=("http", "https"),
        insecure_storage=True, iscsi_port=0, times=MigrationTimes(heartbeat_lost=1.5),
    )  # fmt: skip
    path = tmp_path / "daemon.toml"
    path.write_text(show(config))
    assert build(load(path)) == config


def test_every_setting_is_shown() -> None:
    shown = tomllib.loads(show(Config(Path("/x"))))
    assert set(shown) == set(attrs.fields_dict(Config))
    assert set(shown["times"]) == set(attrs.fields_dict(MigrationTimes))


def test_later_sources_win_and_times_are_merged() -> None:
    merged = merge(
        {"state_dir": "/a", "times": {"poll": 1, "ask": 2}}, {"state_dir": "/b"}, setting("poll=3"),
        setting("times.offer=4"), setting("insecure-storage=yes"),
    )  # fmt: skip
    config = build(merged)
    assert config.state_dir == Path("/b")
    assert config.insecure_storage is True
    assert (config.times.poll, config.times.ask, config.times.offer) == (3.0, 2.0, 4.0)


def test_a_relative_state_folder_becomes_absolute() -> None:
    assert build({"state_dir": "here"}).state_dir == Path.cwd() / "here"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "--state-dir"),
        ({"state_dir": "/x", "sate_dir": "/y"}, "no setting named sate_dir"),
        ({"state_dir": "/x", "times": {"pol": 1}}, "no setting named times.pol"),
        ({"state_dir": "/x", "times": 5}, "times is a table"),
        ({"state_dir": "/x", "times": {"poll": "soon"}}, "times.poll is a number, not 'soon'"),
        ({"state_dir": "/x", "iscsi_port": "iscsi"}, "iscsi_port is a whole number"),
        ({"state_dir": "/x", "iscsi_port": True}, "iscsi_port is a whole number"),
        ({"state_dir": "/x", "sends_at_once": 4.5}, "sends_at_once is a whole number, not 4.5"),
        ({"state_dir": "/x", "sends_at_once": "4.5"}, "sends_at_once is a whole number, not '4.5'"),
        ({"state_dir": "/x", "sends_at_once": math.inf}, "sends_at_once is a whole number, not inf"),
        ({"state_dir": "/x", "times": {"iscsi_silence": 9.5}}, "times.iscsi_silence is a whole number, not 9.5"),
        ({"state_dir": "/x", "insecure_storage": "perhaps"}, "insecure_storage is true or false"),
        ({"state_dir": "/x", "listen": [1]}, "listen is a list of texts"),
        ({"state_dir": "/x", "listen": 1}, "listen is a list of texts"),
        ({"state_dir": "/x", "database": 1}, "database is a text"),
        ({"state_dir": "/x", "iscsi_port": 65536}, "iscsi_port is 65535 at most"),
        ({"state_dir": "/x", "iscsi_port": -1}, "iscsi_port is 0 or more"),
        ({"state_dir": "/x", "sends_at_once": -1}, "sends_at_once is 0 or more"),
        ({"state_dir": "/x", "metadata_limit": 0}, "metadata_limit is 1 or more"),
        ({"state_dir": "/x", "schemes": "ftp"}, "schemes is https or http, not 'ftp'"),
        ({"state_dir": "/x", "schemes": []}, "schemes is empty"),
        ({"state_dir": "/x", "accelerators": "warp"}, "accelerators is kvm or tcg, not 'warp'"),
        ({"state_dir": "/x", "without_bridge": "perhaps"}, "without_bridge is refuse or disconnect"),
        ({"state_dir": "/x", "domains": "kvm"}, "domains is qemu or xen, not 'kvm'"),
        ({"state_dir": "/x", "api_socket_mode": "9z"}, "api_socket_mode is 0600 or 0660"),
        ({"state_dir": "/x", "denied_networks": ["everything"]}, "denied_networks is a list of networks"),
        ({"state_dir": "/x", "times": {"heartbeat_interval": -1}}, "times.heartbeat_interval is a number of seconds"),
        ({"state_dir": "/x", "times": {"poll": "nan"}}, "times.poll is a number of seconds above 0"),
        ({"state_dir": "/x", "times": {"memory_silence": 1}}, "times.memory_silence is 2 or more"),
        ({"state_dir": "/x", "times": {"stall": 0}}, "times.stall is a number of seconds above 0"),
        ({"state_dir": "/x", "times": {"guard": "inf"}}, "times.guard is a number of seconds above 0"),
        ({"state_dir": "/x", "times": {"iscsi_silence": 2}}, "times.iscsi_silence is 3 or more, not 2"),
        ({"state_dir": "/x", "member_lost": 0}, "member_lost is a number of seconds above 0"),
        ({"state_dir": "/x", "certificate": "/y"}, "certificate and private_key are set together"),
        ({"state_dir": "/x", "authorities": "/nowhere/ca.pem"}, "authorities names /nowhere/ca.pem, which cannot be"),
    ],
)
def test_values_that_cannot_be_used(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(values)


def test_storage_is_told_its_times() -> None:
    assert configured(Config(Path("/x"))) == SMTimeouts()
    told = configured(build({"state_dir": "/x", "times": {"stall": 2, "guard": 3, "iscsi_silence": 20}}))
    assert (told.stall, told.guard, told.nop_interval, told.nop_count) == (2.0, 3.0, 7, 3)
    assert told.stale_writes > told.nop_interval * told.nop_count >= 20


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("state_dir = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        setting("poll")
