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
    assert driver.formats == ("raw", "qcow2")


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
    (tmp_path / "partial.py").write_text(GOOD.format(name="partial", generation=1).replace("open_sr", "opened"))
    found = discover(package)
    assert list(found.usable) == ["good"]
    reasons = {one.where: one.reason for one in found.broken}
    assert sorted(reasons) == ["SHOUT", "good", "imports", "old", "partial", "syntax"]
    assert "there_is_no_such_module" in reasons["imports"]
    assert "generation 0" in reasons["old"]
    assert "open_sr" in reasons["partial"]
    with pytest.raises(SrUnknownDriver):
        found.get("partial")
