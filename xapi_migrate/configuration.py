"""Where the values of a `Config` come from: its defaults, a TOML file, the command line, in that order.

A file has the attributes of `Config` as its keys and those of `MigrationTimes` in a table [times]:

    state_dir = "/var/lib/xapi_migrate"
    listen = ["tls:8443:interface=10.0.0.1"]
    [times]
    heartbeat_interval = 30
"""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from .config import Config, MigrationTimes
from .configuration_limits import check


class ConfigError(ValueError):
    """A value of the configuration cannot be used; the text is a sentence."""


def load(path: Path) -> dict[str, Any]:
    """The values that a file sets, not yet checked. ConfigError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from None


def setting(text: str) -> dict[str, Any]:
    """NAME=VALUE, NAME being an attribute of Config, or of its times with or without `times.`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes NAME=VALUE, not {text!r}.")
    name = name.strip().replace("-", "_")
    times = name.removeprefix("times.")
    if times in attrs.fields_dict(MigrationTimes):
        return {"times": {times: value.strip()}}
    return {name: value.strip()}


def merge(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Later ones win; `times` is merged name by name."""
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            if name == "times" and isinstance(value, Mapping):
                merged[name] = {**merged.get(name, {}), **value}
            else:
                merged[name] = value
    return merged


def build(values: Mapping[str, Any]) -> Config:
    """The configuration. ConfigError names the value that cannot be used."""
    if not values.get("state_dir"):
        raise ConfigError("Say where this daemon may keep its state: --state-dir DIR, or state_dir in the file.")
    given = dict(values)
    times = given.pop("times", {})
    if not isinstance(times, Mapping):
        raise ConfigError("times is a table of names and seconds.")
    arguments = _arguments(Config, given, "")
    config = Config(**arguments, times=MigrationTimes(**_arguments(MigrationTimes, times, "times.")))
    wrong = check(config)
    if wrong:
        raise ConfigError(wrong)
    return config


def show(config: Config) -> str:
    """All values as a TOML file that would set them."""
    lines = [f"{field.name} = {_toml(getattr(config, field.name))}" for field in attrs.fields(Config)
             if field.name != "times"]  # fmt: skip
    lines += ["", "[times]"]
    lines += [f"{field.name} = {_toml(getattr(config.times, field.name))}" for field in attrs.fields(MigrationTimes)]
    return "\n".join(lines) + "\n"


def _arguments(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    types = typing.get_type_hints(cls)
    for unknown in (name for name in values if name not in types):
        known = ", ".join(name for name in types if name != "times")
        raise ConfigError(f"There is no setting named {prefix}{unknown}; there are {known}.")
    return {name: _value(types[name], value, prefix + name) for name, value in values.items()}


def _value(kind: Any, value: Any, name: str) -> Any:
    """A value from TOML, or the text that stands for one on the command line."""
    try:
        if kind is bool:
            return _bool(value)
        if kind in (int, float):
            if isinstance(value, bool) or kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError
            return kind(value)
        if kind is Path:
            return Path(value).absolute()
        if typing.get_origin(kind) is tuple:
            items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
            if not all(isinstance(item, str) for item in items):
                raise ValueError
            return tuple(item for item in items if item)
        if not isinstance(value, str):
            raise ValueError
        return value
    except (TypeError, ValueError):
        what = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "a text"}
        raise ConfigError(f"{name} is {what.get(kind, 'a list of texts')}, not {value!r}.") from None


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
