"""xapi-migrate sm-new: a storage backend of one's own to begin with."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import click

from .. import __version__
from .failures import Refused

SETUP = """\
[metadata]
name = xapi_migrate_sm_NAME
version = 0.1
description = Storage backend of xapi_migrate
long_description = file: README.md
long_description_content_type = text/markdown

[options]
packages =
    sm_NAME
    twisted.plugins
python_requires = >=3.11
install_requires =
    xapi_migrate>=VERSION
"""
PYPROJECT = """\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
"""
PLUGIN = """\
from sm_NAME.driver import CLASSDriver

driver = CLASSDriver()
"""
TESTS = '''\
"""The contract of storage backends; needs pytest and pytest-twisted."""

from functools import partial

from sm_NAME.driver import CLASSDriver

from xapi_migrate.testing.adapters import for_pytest
from xapi_migrate.testing.folder_backend import FolderDriver
from xapi_migrate.testing.sm_contract import BACKEND_CHECKS, COPY_CHECKS, SR_CHECKS
from xapi_migrate.testing.sr_hosts import one_sr, two_srs

OURS = (CLASSDriver(), CLASSDriver().scratch)
OTHER = (FolderDriver(), FolderDriver().scratch)

test_backend = for_pytest(BACKEND_CHECKS, partial(one_sr, *OURS))
test_as_sender = for_pytest(SR_CHECKS, partial(two_srs, OURS, OTHER))
test_as_receiver = for_pytest(COPY_CHECKS, partial(two_srs, OTHER, OURS))
'''
README = """\
# sm_NAME

A storage backend of xapi_migrate, SR type `NAME`: each VDI is a raw file in a folder. Make it your own.

| device_config | meaning |
|---|---|
| `location` | the folder, absolute |

    pip install .
    xapi-migrate sm-list
    xapi-migrate sm-check NAME
"""


@click.command("sm-new")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path(),
    help="Where the folder sm_NAME is made [here].",
)
def sm_new(name: str, into: Path) -> None:
    """Write a storage backend of SR type NAME, as a distribution that works as it is: raw files in a folder."""
    name = name.removeprefix("sm_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise click.UsageError("NAME may have lower case letters, digits and underscores, and begins with a letter.")
    top = into / f"sm_{name}"
    if top.exists():
        raise Refused(f"{top} is there already.")
    for path, text in contents(name).items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)
    click.echo(f"{top} is a backend that works: raw files in a folder. {top}/sm_{name}/driver.py is what to change.")
    place = top if top.is_absolute() else f"./{top}"  # a bare name pip would take from its index
    click.echo(f"Then: pip install {place} && xapi-migrate sm-check {name}")


def contents(name: str) -> dict[str, str]:
    """The files of a new distribution by their path in it. The code is that of the kit's own backend."""
    cls = "".join(word.capitalize() for word in name.split("_"))
    driver = files("xapi_migrate.testing").joinpath("folder_backend.py").read_text()
    driver = driver.replace('"xapi_migrate"', '"me"').replace("Folder", cls).replace('"folder"', f'"{name}"')
    written = {
        "setup.cfg": SETUP.replace("VERSION", __version__),
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"sm_{name}/__init__.py": "",
        f"sm_{name}/driver.py": driver,
        f"twisted/plugins/sm_{name}_plugin.py": PLUGIN,
        f"tests/test_sm_{name}.py": TESTS,
    }
    return {path: text.replace("NAME", name).replace("CLASS", cls) for path, text in written.items()}
