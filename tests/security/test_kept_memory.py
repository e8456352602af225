"""What strangers send leaves nothing in the daemon's memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUNS = """
import os
{setup}
def resident():
    with open("/proc/self/statm") as table:
        return int(table.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for number in range(10):
    send(number)
before = resident()
for number in range(10, 70):
    send(number)
print(resident() - before)
"""
MOST = 12 << 20
"""Bytes that the process may have grown by: its allocator keeps a little."""
NAMES = """
from xapi_migrate.xenapi.wire import Malformed, parse_call
def send(number):
    names = "".join(f"<n{number}x{one}/>" for one in range(19000))
    try:
        parse_call(f"<methodCall><methodName>a</methodName>{names}</methodCall>".encode())
    except Malformed:
        pass
"""
ECHO = """
from xapi_migrate.xenapi.wire import success
def send(number):
    success({f"{number}" + "x" * 299_000: 1})
"""
METADATA = """
from xapi_migrate.errors import ImportError_
from xapi_migrate.migration.metadata_xml import read_value
def send(number):
    names = "".join(f"<n{number}x{one} a{number}x{one}=''/>" for one in range(19000))
    try:
        read_value(f"<value>{names}</value>".encode())
    except ImportError_:
        pass
"""


@pytest.mark.parametrize("setup", [NAMES, ECHO, METADATA], ids=["names of elements", "names of members", "metadata"])
def test_names_that_nobody_knows_are_not_kept(setup: str) -> None:
    """Parsers that live on keep every name, as do caches: a few hundred requests without a session were 200 MB."""
    run = subprocess.run(
        [sys.executable, "-c", RUNS.format(setup=setup)], check=True, capture_output=True, text=True, timeout=60
    )
    assert int(run.stdout) < MOST
