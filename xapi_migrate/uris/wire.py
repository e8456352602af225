"""What stands in the bodies: JSON of errors, decisions and disk offers, for both ends."""

from __future__ import annotations

import json
from typing import Any

from ..errors import MigrateError
from ..migration.interfaces import Answer, DiskOffer, Outcome
from ..sm.interfaces import SameDiskProof, TargetUrl

UPGRADE = b"xapi-migrate-memory"
"""The protocol of PUT memory after 101: opaque bytes from the sender, ended by their own end marker, then one HTTP
response from the receiver."""

ANSWER_LIMIT = 64 << 10
"""No answer of a receiver is longer, in bytes."""


class Malformed(Exception):
    """The other side's body is not what it should be."""


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def decode(body: bytes) -> dict[str, Any]:
    """A JSON object; Malformed for anything else."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return value


def error_body(error: MigrateError) -> bytes:
    code, *params = error.failure()
    return encode({"code": code, "params": params, "message": str(error)})


def answer_body(answer: Answer) -> bytes:
    return encode({"outcome": answer.outcome.value, "reason": answer.reason})


def read_answer(body: bytes) -> Answer:
    """What a receiver said was decided. "unknown" is no word of a receiver's: only its 404 means that."""
    value = decode(body)
    outcome = value.get("outcome")
    if outcome not in ("open", "committed", "aborted"):
        raise Malformed("no outcome")
    return Answer(Outcome(outcome), plain(value.get("reason", "")))


def waiting_body(behind: int) -> bytes:
    return encode({"behind": behind})


def read_waiting(body: bytes) -> int:
    """How many migrations a receiver still has before this one: 1 at least."""
    behind = decode(body).get("behind")
    if type(behind) is not int or not 0 < behind < 1 << 20:
        raise Malformed("it does not say how many come before")
    return behind


def disk_body(offer: DiskOffer) -> bytes:
    """Contains the CHAP password: never cached, never logged."""
    proof = offer.proof
    return encode(
        {
            "number": offer.number,
            "vdi_uuid": offer.vdi_uuid,
            "sr_uuid": offer.sr_uuid,
            "virtual_size": offer.virtual_size,
            "url": offer.url.url,
            "username": offer.url.username,
            "password": offer.url.password,
            "found": offer.found,
            "proof": None if proof is None else {"name": proof.name, "value": proof.value},
        }
    )


def read_disk(body: bytes) -> DiskOffer:
    """Malformed unless every field is there and of its type. The message never quotes a value."""
    value = decode(body)
    proof = value.get("proof")
    number, size, found = value.get("number"), value.get("virtual_size"), value.get("found")
    if type(number) is not int or type(size) is not int or type(found) is not bool or size < 0:
        raise Malformed("a disk's number, size or found is missing")
    url = TargetUrl(_text(value, "url"), _text(value, "username"), _text(value, "password"))
    if proof is not None and not isinstance(proof, dict):
        raise Malformed("the proof is not an object")
    same = None if proof is None else SameDiskProof(_text(proof, "name"), _text(proof, "value"))
    return DiskOffer(number, _text(value, "vdi_uuid"), _text(value, "sr_uuid"), size, url, found, same)


def plain(value: object, longest: int = 1000) -> str:
    """Text of the other side for a person: one line of printable characters, cut."""
    return "".join(c if c.isprintable() else " " for c in str(value)[:longest])


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise Malformed(f"{name} is missing")
    if len(text) > 1000 or not text.isprintable():
        raise Malformed(f"{name} is not one short line")
    return text
