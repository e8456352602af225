"""What drivers have in common: the domains of this host that they know, by their ids."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.logger import Logger

from xapi_migrate.domains.interfaces import DomainState
from xapi_migrate.errors import DomainError


class Domain(Protocol):
    """`why`: see IDomainDriver.why."""

    why: str


_D = TypeVar("_D", bound=Domain)


class Driver(ABC, Generic[_D]):
    """`host` is what errors call this host."""

    log = Logger()

    def __init__(self, host: Callable[[], str]) -> None:
        self._host = host
        self._domains: dict[str, _D] = {}
        self._watchers: list[Callable[[str, DomainState], None]] = []

    @abstractmethod
    def _make(self, domain_id: str) -> _D:
        """A domain of which nothing is there yet but its id."""

    @abstractmethod
    async def state(self, domain_id: str) -> DomainState:
        """See IDomainDriver."""

    def why(self, domain_id: str) -> str:
        domain = self._domains.get(domain_id)
        return domain.why if domain is not None else ""

    async def domains(self) -> list[str]:
        return sorted(self._domains)

    def watch(self, callback: Callable[[str, DomainState], None]) -> None:
        self._watchers.append(callback)

    def _tell(self, domain_id: str, state: DomainState) -> None:
        for watcher in list(self._watchers):
            try:
                watcher(domain_id, state)
            except Exception:
                self.log.failure("a watcher of domains failed")

    def _new(self, domain_id: str) -> _D:
        """DomainError for an id that is none: it becomes the name of a folder."""
        if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", domain_id):
            raise self._error(domain_id, "be made", "its id is not one")
        domain = self._domains[domain_id] = self._make(domain_id)
        return domain

    def _get(self, domain_id: str, action: str) -> _D:
        domain = self._domains.get(domain_id)
        if domain is None:
            raise self._error(domain_id, action, "there is no such domain")
        return domain

    async def _only(self, domain_id: str, action: str, *states: DomainState) -> DomainState:
        """Its state. DomainError if that is not among these."""
        state = await self.state(domain_id)
        if state not in states:
            raise self._error(domain_id, action, f"it is {state.value}")
        return state

    def _error(self, domain_id: str, action: str, reason: str) -> DomainError:
        return DomainError(domain=domain_id, host=self._host(), action=action, reason=reason)
