"""The map that host.migrate_receive answers and that clients hand to VM.migrate_send as it is.

xapi's keys are there because clients and other servers expect them; what we use are two of our own: the offer (its
URIs, joined by spaces) and what the receiving host could take when it was asked, as JSON, so that the sender can refuse
without asking again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import attrs

from xapi_migrate.errors import InvalidValue
from xapi_migrate.refusals import NoOffer

OFFER = "xapi_migrate"
ABOUT = "xapi_migrate_host"


@attrs.frozen
class Place:
    """An SR: `free` bytes, -1 if that is not known."""

    uuid: str
    attached: bool
    free: int = -1


@attrs.frozen
class About:
    """What the receiving host can take. Bytes; `srs` and `networks` by its own references; `unattachable` those of
    the networks that it cannot connect a VIF to."""

    protocol: int
    enabled: bool
    cpus: int
    memory_free: int
    stream: str
    srs: Mapping[str, Place]
    networks: tuple[str, ...]
    unattachable: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(attrs.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> About:
        """InvalidValue."""
        try:
            told = json.loads(text)
            srs = {str(ref): Place(str(p["uuid"]), bool(p["attached"]), int(p["free"])) for ref, p in _items(told)}
            return cls(
                protocol=int(told["protocol"]), enabled=bool(told["enabled"]), cpus=int(told["cpus"]),
                memory_free=int(told["memory_free"]), stream=str(told["stream"]), srs=srs,
                networks=tuple(map(str, told["networks"])),
                unattachable=tuple(map(str, told.get("unattachable", ()))),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            raise InvalidValue(f"dest:{ABOUT}", text[:100]) from None


def _items(told: Any) -> Any:
    return told["srs"].items()


@attrs.frozen
class Destination:
    """The map, taken apart. `about` is None if it was left out."""

    host: str
    uris: tuple[str, ...] = attrs.field(repr=False)
    about: About | None


def destination_map(host: str, address: str, uris: list[str], about: About) -> dict[str, str]:
    """What host.migrate_receive answers. The session in it is none of ours: it has the form that is expected and opens
    nothing, for our capability is in the offer's URIs alone."""
    session = f"OpaqueRef:{uuid4()}"
    base = f"http://[{address}]" if ":" in address else f"http://{address}"
    return {
        "SM": f"{base}/services/SM?session_id={session}",
        "host": host,
        "xenops": f"{base}/services/xenops?session_id={session}",
        "session_id": session,
        "master": base,
        OFFER: " ".join(uris),
        ABOUT: about.to_json(),
    }


def read_destination(given: Mapping[str, str]) -> Destination:
    """NoOffer if the destination is no host of ours, InvalidValue if somebody has changed the map."""
    uris = tuple(given.get(OFFER, "").split())
    if not uris:
        raise NoOffer(
            "It made no offer that this host understands: only hosts that run xapi_migrate receive VMs from here."
        )
    about = given.get(ABOUT)
    return Destination(given.get("host", ""), uris, About.from_json(about) if about is not None else None)
