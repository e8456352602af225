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
from xapi_migrate.sm.interfaces import GENERATION, ISMDriver

log = Logger()
_TWISTED_OWN = str(Path(twisted.__file__).parent / "plugins")


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
    own = [folder for folder in package.__path__ if folder != _TWISTED_OWN]
    for found in sorted(pkgutil.iter_modules(own), key=lambda module: module.name):
        try:
            module = importlib.import_module(f"{package.__name__}.{found.name}")
        except Exception as failure:
            broken.append(BrokenDriver(found.name, f"cannot be loaded: {type(failure).__name__}: {failure}"))
            continue
        for candidate in vars(module).values():
            if ISMDriver.providedBy(candidate):
                _judge(candidate, usable, broken)
    for one in broken:
        log.warn("storage backend {where} cannot be used: {reason}", where=one.where, reason=one.reason)
    return Drivers(usable, tuple(broken))


def _judge(driver: ISMDriver, usable: dict[str, ISMDriver], broken: list[BrokenDriver]) -> None:
    name = str(getattr(driver, "name", "") or type(driver).__name__)
    try:
        verifyObject(ISMDriver, driver)
    except Invalid as failure:
        broken.append(BrokenDriver(name, " ".join(str(failure).split())))
        return
    if driver.generation != GENERATION:
        reason = f"it was written for generation {driver.generation} of the interface, this is {GENERATION}"
        broken.append(BrokenDriver(name, reason))
    elif not name.replace("_", "").isalnum() or name != name.lower():
        broken.append(BrokenDriver(name, "its name may have lower case letters, digits and underscores only"))
    elif name in usable and usable[name] is not driver:
        broken.append(BrokenDriver(name, f"there are two of this name, {usable[name].vendor}'s is used"))
    else:
        usable[name] = driver
