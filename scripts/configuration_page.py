"""Write docs/configuration.md from the comments of xapi_migrate/config.py; the tests compare.

configuration_page.py            write it
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"
sys.path.insert(0, str(ROOT))

from xapi_migrate.config import Config, MigrationTimes  # noqa: E402

HEAD = """# Configuration

Written from the comments of `xapi_migrate/config.py` by `scripts/configuration_page.py`; the tests compare.

Values come from three places. Later ones win: the defaults, the TOML file of `--config`, the command line.
`xapi-migrate serve --state-dir DIR --show-config` prints the values that hold, as a file that `--config` reads.
`--set NAME=VALUE` sets any of them on the command line. An unknown name or a value of the wrong type ends the start.

```toml
state_dir = "/var/lib/xapi_migrate"
listen = ["tls:443"]
addresses = ["192.0.2.10"]
insecure_storage = true

[times]
heartbeat_interval = 10
```

"""

TAIL = """
Other figures are not settings: those of storage are in `xapi_migrate/sm/timeouts.py`, those of domains in
`xapi_migrate/domains/qemu_config.py`.
"""


def comments(cls: type) -> dict[str, str]:
    """The comment above each attribute, as one line."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        if line.startswith("# "):
            lines.append(line[2:])
            continue
        name = line.split(":", 1)[0]
        if lines and name in attrs.fields_dict(cls):
            found[name] = " ".join(lines)
        lines = []
    return found


def default_of(field: attrs.Attribute[object]) -> str:
    """The default as the TOML file would have it."""
    if field.default is attrs.NOTHING:
        return "must be set"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{json.dumps(value)}`"


def table(cls: type) -> str:
    """A Markdown table of the settings of one class."""
    said = comments(cls)
    rows = [
        f"| `{field.name}` | {default_of(field)} | {said[field.name]} |"
        for field in attrs.fields(cls)
        if field.name != "times"
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows]) + "\n"


def page() -> str:
    """The whole page. KeyError for a setting that has no comment."""
    times = "\n## [times]\n\nAll in seconds.\n\n"
    return HEAD + "## Settings\n\n" + table(Config) + times + table(MigrationTimes) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
