"""The documentation: what it links to and names is there, every step and setting has its place."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import attrs
import click
import pytest

from xapi_migrate.cli import COMMANDS, command
from xapi_migrate.config import Config, MigrationTimes
from xapi_migrate.steps import Step

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "NEWS.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
ON_A_HOST = {"tmp", "var", "etc", "proc", "dev", "run", "usr"}
"""First folders of the absolute paths that a page may name."""
PATHS_OF_URLS = {"RPC2", "json", "xmlrpc", "jsonrpc", "migrate", "services", "import_metadata"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def named_file(text: str, page: Path) -> Path | None:
    """The file of the project that a page means by `text`: seen from the top, the package or the page."""
    return next((base / text for base in (ROOT, ROOT / "xapi_migrate", page.parent) if (base / text).exists()), None)


@every_page
def test_relative_links_lead_somewhere_inside(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if re.match(r"[a-z]+://|#", link):
            continue
        target = (page.parent / link.split("#")[0]).resolve()
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(r"(?<![\w/.:-])((?:[\w-]+/)+[\w.-]+\.(?:py|pml|md|sh|cfg|toml|json))\b", page.read_text())
    own = [name for name in names if not name.startswith("path/") and "sm_shelf" not in name]  # the tutorial makes it
    missing = [name for name in own if named_file(name, page) is None and not of_a_state_folder(name)]
    assert missing == []


def of_a_state_folder(name: str) -> bool:
    return name in ("tgt/state.json", "lab/lab.json", "upstream/ID.json", "arrivals/ID.json")


@every_page
def test_functions_that_are_named_exist(page: Path) -> None:
    for name, function in re.findall(r"`([\w/]+\.py):(\w+)`", page.read_text()):
        file = named_file(name, page)
        assert file is not None, name
        assert re.search(rf"\b(?:def|class) {function}\b", file.read_text()), f"{name}:{function}"


@every_page
def test_tests_that_are_named_exist(page: Path) -> None:
    for name, test in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text()):
        assert re.search(rf"^(?:async )?def {test}\b", (ROOT / name).read_text(), re.MULTILINE), f"{name}::{test}"


@every_page
def test_no_folder_outside_of_the_project_is_named(page: Path) -> None:
    paths = re.findall(r"(?:^|[\s`(=]|[\s=(]\")(/[A-Za-z][\w.-]*)", page.read_text(), re.MULTILINE)
    assert {path[1:] for path in paths} - ON_A_HOST - PATHS_OF_URLS == set()


def test_every_step_has_its_row() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| ([1-5]\.\d) \|", text, re.MULTILINE)
    assert rows == [step.id for step in Step]


def test_the_configuration_page_is_written_from_the_code() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    names = {*attrs.fields_dict(Config), *attrs.fields_dict(MigrationTimes)} - {"times"}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == names
    page = runpy.run_path(str(ROOT / "scripts/configuration_page.py"))["page"]
    assert text == page(), "write it again: .venv/bin/python scripts/configuration_page.py"


def test_every_command_and_option_is_named() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert [name for name in COMMANDS if f"`{name}" not in text] == []
    sources = [*(ROOT / "xapi_migrate/cli").glob("*.py")]
    options = {option for path in sources for option in re.findall(r'click\.option\(\s*"(--[\w-]+)"', path.read_text())}
    assert len(options) > 8
    assert sorted(option for option in options if f"`{option}" not in text) == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index and page.name != "README.md"
    ] == []
    decisions = (ROOT / "docs/decisions/README.md").read_text()
    pages = (ROOT / "docs/decisions").glob("*.md")
    assert [page.name for page in pages if f"({page.name})" not in decisions and page.name != "README.md"] == []


def test_the_packages_to_install_are_those_that_setup_knows() -> None:
    (said,) = re.findall(r"apt-get install ((?:[^\\\n]|\\\n)+)", (ROOT / "docs/operations.md").read_text())
    known = re.sub("#.*", "", (ROOT / "scripts/apt-packages").read_text()).split()
    assert set(said.replace("\\", "").split()) - set(known) == set()


def test_each_option_is_said_of_the_commands_that_have_it() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    made = {name: command.get_command(click.Context(command), name) for name in COMMANDS}
    options = {
        name: {option for parameter in one.params for option in parameter.opts if option.startswith("--")}
        for name, one in made.items()
        if one is not None
    }
    to_a_server = {name for name in options if "--url" in options[name]}
    lists = {name for name in options if name.endswith("-list")}
    groups = {"commands that speak to a server": to_a_server, "the same": to_a_server, "all lists": lists}
    said: dict[str, set[str]] = {}
    for cell, of in re.findall(r"^\| (`--[^|]+) \| ([^|]+) \|", text.replace("\\|", " "), re.MULTILINE):
        commands = {name for name in re.findall(r"`([a-z-]+)`", of.replace("`--url`", "")) if name in options}
        commands |= {name for words, names in groups.items() if words in of for name in names}
        for option in re.findall(r"--[\w-]+", cell):
            said.setdefault(option, set()).update(commands)
    has = {option: {name for name in options if option in options[name]} for option in set().union(*options.values())}
    daemons = {option for option, commands in said.items() if commands == {"serve"}}
    assert {option: commands for option, commands in said.items() if option not in daemons} == {
        option: commands | (said.get(option, set()) & {"serve"}) for option, commands in has.items()
    }


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "docs/cli.md"])
def test_lines_that_are_no_tables_are_short(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
