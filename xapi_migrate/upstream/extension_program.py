"""The program that an existing xapi starts for a call that it does not know: it hands the call to this daemon.

xapi runs the executable of the call's name in its folder of extensions with the argument --xmlrpc, the call as XML-RPC
on its standard input, and takes what it prints for the answer. The text below stands alone, for whatever Python the
host's control domain has.
"""

from __future__ import annotations

import sys

PATH = b"/xapi_migrate/extension"
"""Where the daemon takes such calls. At the paths of the API it would hand one that it cannot read back to xapi, which
would start the program again, and so without end."""
_TEXT = '''#!{python}
"""Hands {name} to the xapi_migrate daemon. Written by xapi-migrate install-extensions."""

import http.client
import socket
import sys

SOCKET = {socket!r}
FAILED = (
    '<?xml version="1.0"?><methodResponse><params><param><value><struct><member><name>Status</name>'
    '<value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>'
    '<value>CANNOT_CONTACT_HOST</value><value>%s</value><value>%s</value>'
    '</data></array></value></member></struct></value></param></params></methodResponse>'
)


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(SOCKET)


def escaped(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def main():
    if sys.argv[1:] != ["--xmlrpc"]:
        sys.stderr.write("usage: {name} --xmlrpc, with a call on standard input\\n")
        return 2
    call = sys.stdin.buffer.read()
    connection = Connection("localhost")
    try:
        connection.request("POST", {path!r}, call, {{"Content-Type": "text/xml", "Connection": "close"}})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise OSError("status %d: %s" % (response.status, answer[:200].decode("utf-8", "replace").strip()))
    except (OSError, http.client.HTTPException) as error:
        answer = (FAILED % (escaped(SOCKET), escaped("the xapi_migrate daemon does not answer: %s" % error))).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return 0


sys.exit(main())
'''


def interpreter() -> str:
    """A Python that the kernel can start from a script's first line."""
    usual = sys.executable
    return usual if usual and " " not in usual and len(usual) < 120 else "/usr/bin/python3"


def program(name: str, socket_path: str, python: str = "") -> str:
    """The text of the executable for the call `name`; the daemon serves its API at `socket_path`."""
    return _TEXT.format(python=python or interpreter(), name=name, socket=socket_path, path=PATH.decode())
