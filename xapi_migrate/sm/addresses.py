"""What VDI.get_url answers, taken apart: a LUN of an iSCSI target, or a disk behind NBD with TLS."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import attrs

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def bracketed(address: str) -> str:
    """An address as it stands before ":port"."""
    return f"[{address}]" if ":" in address else address


@attrs.frozen
class LunAddress:
    """The parts of iscsi://ADDRESS:PORT/IQN/LUN."""

    address: str
    port: int
    iqn: str
    lun: int

    @property
    def portal(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"


@attrs.frozen
class NBDAddress:
    """The parts of nbds://ADDRESS:PORT/SERIAL/ID: NBD over TLS with a shared key (username and password of the
    TargetUrl; the password is the key, in hexadecimal). SERIAL and ID say what the vital product data of a LUN says."""

    address: str
    port: int
    serial: str
    id: str

    @property
    def portal(self) -> str:
        return f"{bracketed(self.address)}:{self.port}"

    @property
    def url(self) -> str:
        return f"nbds://{self.portal}/{self.serial}/{self.id}"


def read_address(url: str) -> LunAddress | NBDAddress:
    """ValueError when it is neither."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    first, _, last = unquote(parts.path).strip("/").rpartition("/")
    if parts.query or parts.fragment or parts.username is not None:
        host = None
    if parts.scheme == "iscsi" and host and first and last.isdecimal():
        return LunAddress(host, port or 3260, first, int(last))
    if parts.scheme == "nbds" and host and port and _NAME.fullmatch(first) and _NAME.fullmatch(last):
        return NBDAddress(host, port, first, last)
    raise ValueError(
        f"{parts.scheme}://{parts.hostname}{parts.path} is neither iscsi://ADDRESS:PORT/IQN/LUN nor "
        "nbds://ADDRESS:PORT/SERIAL/ID"
    )
