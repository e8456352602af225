"""What a person reads when a command fails, and the exit status."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import xmlrpc.client
from collections.abc import Callable, Sequence
from enum import IntEnum

import XenAPI

from .. import errors


class ExitCode(IntEnum):
    """Exit status: 0 done; 1 it failed, and the sentence on stderr says why; 2 wrong arguments; 3 cancelled, the
    VM runs where it was; 130 interrupted."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    INTERRUPTED = 130


class Refused(Exception):
    """The command ends with this sentence."""

    def __init__(self, sentence: str, exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def sentence(description: Sequence[str], name: Callable[[str], str] = str) -> str:
    """A XenAPI ErrorDescription as the sentence of the catalogue, else as its code and parameters. `name` makes
    a readable name of a reference."""
    if not description:
        return "The server said that it failed, and not why."
    code, parameters = description[0], [name(parameter) for parameter in description[1:]]
    for cls in _classes(code):
        fields = dict(zip(cls.parameters, parameters))
        needed = set(re.findall(r"{(\w+)", cls.__doc__ or ""))
        if len(fields) == len(parameters) and needed <= set(fields):
            return " ".join((cls.__doc__ or "").split()).format(**fields) or code
    said = [parameter for parameter in parameters if parameter]
    if code in ("INTERNAL_ERROR", "VM_MIGRATE_FAILED") and said:
        return " ".join(said)
    return f"{code}: {', '.join(said)}" if said else code


def _classes(code: str) -> list[type[errors.MigrateError]]:
    entries = (value for value in vars(errors).values() if isinstance(value, type))
    return [cls for cls in entries if issubclass(cls, errors.MigrateError) and cls.code == code and cls.parameters]


def explained(error: Exception, url: str = "") -> Refused | None:
    """The sentence for an exception of the client's libraries; None if it is not one of theirs."""
    where = f" at {url}" if url else ""
    scheme = url.partition(":")[0] or "http"
    said: str | None = None
    if isinstance(error, XenAPI.Failure):
        said = sentence(error.details)
    elif isinstance(error, xmlrpc.client.ProtocolError):
        said = f"The server{where} answered {error.errcode} {error.errmsg}: is it a XenAPI server?"
    elif isinstance(error, xmlrpc.client.Fault):
        said = f"The server{where} answered: {error.faultString}"
    elif isinstance(error, xmlrpc.client.ResponseError | http.client.HTTPException) or _is_xml_error(error):
        said = (
            f"The answer of the server{where} is not XML-RPC: is it XenAPI's, and does it speak {scheme} on this port?"
        )
    elif isinstance(error, ssl.SSLCertVerificationError):
        said = (
            f"The certificate of the server{where} is not trusted ({error.verify_message}): "
            "name its authority with --ca-file (--to-ca-file for the receiving host), or take any certificate with "
            "--insecure (--to-insecure) where you trust the network."
        )
    elif isinstance(error, ssl.SSLError):
        said = f"No TLS with the server{where} ({error.reason}): does it speak https on this port?"
    elif isinstance(error, TimeoutError):
        said = f"The server{where} did not answer in time."
    elif isinstance(error, socket.gaierror):
        said = f"The server{where} has no known address ({error.strerror})."
    elif isinstance(error, OSError):
        said = f"No connection to the server{where}: {error.strerror or error}."
    return Refused(said) if said is not None else None


def _is_xml_error(error: Exception) -> bool:
    return type(error).__module__ == "xml.parsers.expat"
