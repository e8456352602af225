"""Which storage backends are installed, and which of them cannot be used and why.

A backend is a module in the package `twisted.plugins` that has an object providing ISMDriver (twisted.plugin's way of
finding code). The cache that twisted.plugin keeps is not used: it may be stale or not writable.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import attrs
from twisted.logger import Logger
from zope.interface import Invalid
from zope.interface.verify import verifyObject

import twisted
from xapi_migrate.errors import SrUnknownDriver
from xapi_migrate.sm.interfaces import GENERATION, ImageFormat, ISMDriver

log = Logger()
OLDEST = 1
"""The oldest generation whose drivers still work."""
_FORMATS = {one.value for one in ImageFormat}
_TWISTEDS_FOLDER = str(Path(twisted.__file__).parent / "plugins")
_TWISTEDS_OWN = ("twisted_", "cred_")
"""How the names of the modules begin that Twisted itself brings."""


@attrs.frozen
class BrokenDriver:
    """A backend that cannot be used: `where` is its name, or its module when it could not be loaded."""

    where: str
    reason: str


@attrs.frozen
class Drivers:
    """What was found: by SR type, and what is broken."""

    usable: dict[str, ISMDriver]
    broken: tuple[BrokenDriver, ...]

    def get(self, name: str) -> ISMDriver:
        """SrUnknownDriver."""
        if name not in self.usable:
            raise SrUnknownDriver(name)
        return self.usable[name]


def discover(package: ModuleType | None = None) -> Drivers:
    """Load every module of `package` (twisted.plugins) and keep what provides ISMDriver. One that is broken is
    reported and does not disturb the others."""
    if package is None:
        import twisted.plugins as package
    assert package is not None
    usable: dict[str, ISMDriver] = {}
    broken: list[BrokenDriver] = []
    for name in _modules(package, broken):
        try:
            module = importlib.import_module(f"{package.__name__}.{name}")
        except (Exception, SystemExit) as failure:
            broken.append(BrokenDriver(name, f"cannot be loaded: {type(failure).__name__}: {failure}"))
            continue
        for candidate in vars(module).values():
            try:
                if ISMDriver.providedBy(candidate):
                    _judge(candidate, usable, broken)
            except Exception as failure:
                broken.append(BrokenDriver(name, f"cannot be looked at: {type(failure).__name__}: {failure}"))
    for one in broken:
        log.warn("storage backend {where} cannot be used: {reason}", where=one.where, reason=one.reason)
    return Drivers(usable, tuple(broken))


def _modules(package: ModuleType, broken: list[BrokenDriver]) -> list[str]:
    """All modules of the package but Twisted's own, beside which pip puts others that are installed with it. Of two
    files of one name Python loads the first and is silent."""
    folders: dict[str, str] = {}
    for folder in package.__path__:
        for found in pkgutil.iter_modules([folder]):
            if folder == _TWISTEDS_FOLDER and found.name.startswith(_TWISTEDS_OWN):
                continue
            first = folders.setdefault(found.name, folder)
            if Path(first).resolve() != Path(folder).resolve():
                broken.append(BrokenDriver(found.name, f"{folder} has it, but {first} has another of this name"))
    return sorted(folders)


def _judge(driver: ISMDriver, usable: dict[str, ISMDriver], broken: list[BrokenDriver]) -> None:
    name = getattr(driver, "name", "")
    name = name if isinstance(name, str) and name else type(driver).__name__
    reason = _wrong(driver, name)
    if not reason and name in usable and usable[name] is not driver:
        reason = f"there are two of this name, {usable[name].vendor}'s {usable[name].version} is used"
    if reason:
        broken.append(BrokenDriver(name, reason))
    else:
        usable[name] = driver


def _wrong(driver: ISMDriver, name: str) -> str:
    """Why a driver cannot be used, "" if it can."""
    try:
        verifyObject(ISMDriver, driver)
    except Invalid as failure:
        return " ".join(str(failure).split())
    generation = driver.generation
    if not isinstance(generation, int) or not OLDEST <= generation <= GENERATION:
        newer = isinstance(generation, int) and generation > GENERATION
        advice = "it needs a newer xapi_migrate" if newer else "it needs a newer version of itself"
        return f"it was written for generation {generation} of the interface, this is {GENERATION}: {advice}"
    if driver.name != name or not name.replace("_", "").isalnum() or not name.isascii() or name != name.lower():
        return "its name may have lower case letters, digits and underscores only"
    if not all(isinstance(text, str) for text in (driver.description, driver.vendor, driver.version)):
        return "description, vendor and version have to be texts"
    if not isinstance(driver.features, frozenset) or not all(isinstance(one, str) for one in driver.features):
        return "features has to be a frozenset of texts"
    if not isinstance(driver.formats, tuple) or not driver.formats or not set(driver.formats) <= _FORMATS:
        return f"formats has to be a tuple of some of {', '.join(sorted(_FORMATS))}"
    return ""
