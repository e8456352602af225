"""docs/sm-interface.md names every call, attribute, feature and error, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from zope.interface import Interface
from zope.interface.interface import Method

from xapi_migrate.sm.interfaces import GENERATION, IAttachesVDIs, ISMDriver, ISRBackend
from xapi_migrate.sm.optional import IOptionalCalls, ISharedServices

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sm-interface.md").read_text()


def rows(heading: str) -> list[str]:
    """The first cells of the tables below a heading."""
    section = PAGE.split(f"\n{heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([^|]*)` \|", section, re.MULTILINE)


def calls(*interfaces: type[Interface]) -> list[str]:
    return sorted(
        f"{name}{attribute.getSignatureString()}".replace("=False", "").replace("=b''", "")
        for interface in interfaces
        for name, attribute in interface.namesAndDescriptions(all=False)
        if isinstance(attribute, Method)
    )


def test_the_generation() -> None:
    assert f"generation {GENERATION}" in PAGE.splitlines()[0]


def test_required_calls() -> None:
    assert sorted(rows("### Required")) == calls(ISRBackend)


def test_optional_calls() -> None:
    assert sorted(rows("### Optional")) == calls(IOptionalCalls, IAttachesVDIs)


def test_shared_services() -> None:
    named = {name for cell in rows("### Shared services") for name in re.findall(r"\w+", cell.split("(")[0])}
    assert named == set(ISharedServices.names())


def test_attributes_of_a_driver() -> None:
    named = {name for cell in rows("## How it is found") for name in re.findall(r"\w+", cell.split("(")[0])}
    assert set(ISMDriver.names()) - {"open_sr"} <= named
