"""Finding storage backends: a broken one is named, the others work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from xapi_migrate.errors import SrUnknownDriver
from xapi_migrate.sm.discovery import discover

GOOD = """
from zope.interface import implementer
from xapi_migrate.sm.interfaces import ISMDriver
@implementer(ISMDriver)
class Driver:
    name = {name!r}
    description = vendor = version = "x"
    generation = {generation}
    features = frozenset()
    formats = ("raw",)
    def open_sr(self, config): ...
driver = Driver()
"""


@pytest.fixture
def package(tmp_path: Path) -> Iterator[ModuleType]:
    module = ModuleType("plugins_under_test")
    module.__path__ = [str(tmp_path)]
    sys.modules[module.__name__] = module
    yield module
    for name in [name for name in sys.modules if name.startswith(module.__name__)]:
        del sys.modules[name]


def test_sm_file_is_found() -> None:
    driver = discover().get("file")
    assert driver.formats == ("raw", "qcow2", "vpc")


def test_stale_cache_does_not_matter(tmp_path: Path, package: ModuleType) -> None:
    (tmp_path / "dropin.cache").write_bytes(b"rubbish")
    (tmp_path / "one.py").write_text(GOOD.format(name="one", generation=1))
    tmp_path.chmod(0o555)
    try:
        assert list(discover(package).usable) == ["one"]
    finally:
        tmp_path.chmod(0o755)


def test_broken_ones_are_named_with_the_reason(tmp_path: Path, package: ModuleType) -> None:
    (tmp_path / "good.py").write_text(GOOD.format(name="good", generation=1))
    (tmp_path / "syntax.py").write_text("def (")
    (tmp_path / "imports.py").write_text("import there_is_no_such_module")
    (tmp_path / "old.py").write_text(GOOD.format(name="old", generation=0))
    (tmp_path / "shout.py").write_text(GOOD.format(name="SHOUT", generation=1))
    (tmp_path / "twice.py").write_text(GOOD.format(name="good", generation=1))
    (tmp_path / "new.py").write_text(GOOD.format(name="new", generation=2))
    (tmp_path / "exits.py").write_text("import sys; sys.exit(3)")
    (tmp_path / "bytes.py").write_text(GOOD.format(name=b"bytes", generation=1))
    (tmp_path / "formats.py").write_text(GOOD.format(name="formats", generation=1).replace("raw", "vmdk"))
    (tmp_path / "features.py").write_text(GOOD.format(name="features", generation=1).replace("frozenset()", "None"))
    (tmp_path / "partial.py").write_text(GOOD.format(name="partial", generation=1).replace("open_sr", "opened"))
    found = discover(package)
    assert list(found.usable) == ["good"]
    reasons = {one.where: one.reason for one in found.broken}
    assert sorted(reasons) == [
        "Driver", "SHOUT", "exits", "features", "formats", "good", "imports", "new", "old", "partial", "syntax",
    ]  # fmt: skip
    assert "there_is_no_such_module" in reasons["imports"]
    assert "generation 0" in reasons["old"] and "newer version of itself" in reasons["old"]
    assert "needs a newer xapi_migrate" in reasons["new"]
    assert "two of this name" in reasons["good"]
    assert "open_sr" in reasons["partial"]
    with pytest.raises(SrUnknownDriver):
        found.get("partial")


def test_two_files_of_one_name(tmp_path: Path, package: ModuleType) -> None:
    """Python would load the first and say nothing of the other."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "thing.py").write_text(GOOD.format(name=f"of_{folder}", generation=1))
    package.__path__ = [str(tmp_path / "a"), str(tmp_path / "b")]
    found = discover(package)
    assert list(found.usable) == ["of_a"]
    assert [(one.where, str(tmp_path / "b") in one.reason) for one in found.broken] == [("thing", True)]
