"""Documents and archives that would cost the receiver of a VM much more than they cost their sender."""

from __future__ import annotations

import io
import tarfile
import time

import pytest

from xapi_migrate.errors import ImportError_
from xapi_migrate.migration.metadata_xml import DEPTH, ELEMENTS, read_value, write_value

VALUE = {"version": {"hostname": "a"}, "objects": [1, True, "text <&>"]}
LIMIT = 0.05
LARGEST = 4 << 20

BOMBS = {
    "wide": "<value><array><data>" + "<value/>" * (LARGEST // 8) + "</data></array></value>",
    "wide, unknown": "<value>" + "<a/>" * (LARGEST // 4) + "</value>",
    "deep": "<value><array><data>" * 100_000,
    "deep and closed": "<value><array><data>" * 30_000 + "</data></array></value>" * 30_000,
    "attributes": "<value " + " ".join(f"a{n}=''" for n in range(300_000)) + "/>",
    "names": "<value>" + "".join(f"<a{n}/>" for n in range(100_000)) + "</value>",
    "open comments": "<value>" + "<!--" * 1_000_000,
    "instructions": "<value>" + "<?a?>" * 800_000,
    "open instructions": "<?xml " * 600_000,
    "document type": '<!DOCTYPE a [<!ENTITY b "cccccccc">]><value>&b;</value>',
    "document type, late": '<!-- <value> --><!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]><value>&b;</value>',
    "entity": "<value>&b;</value>",
    "section": "<value><![CDATA[" + "<" * 100_000 + "]]></value>",
    "another encoding": '<?xml version="1.0" encoding="utf-16"?><value>a</value>'.encode("utf-16").decode("latin-1"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_document_is_refused_at_once(name: str) -> None:
    body = BOMBS[name].encode("latin-1")[:LARGEST]
    spent = []
    for _ in range(5):  # the best of a few: a busy machine's caches are not what is measured
        begun = time.process_time()
        with pytest.raises(ImportError_):
            read_value(body)
        spent.append(time.process_time() - begun)
    assert min(spent) < LIMIT


def test_what_is_within_the_limits_is_read() -> None:
    assert read_value(write_value(VALUE)) == {"version": {"hostname": "a"}, "objects": ["1", True, "text <&>"]}
    many = ["a"] * (ELEMENTS - 10)
    assert read_value(b"<?xml version='1.0'?>\n<!-- a -->" + write_value(many)) == many
    deep: list[object] = []
    for _ in range(DEPTH - 1):
        deep = [deep]
    assert read_value(write_value(deep)) == deep


# -- archives ---------------------------------------------------------------------------------------


def archive(about: tarfile.TarInfo, content: bytes, form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        about.size = len(content)
        tar.addfile(about, io.BytesIO(content))
    return file.getvalue()


def header(kind: bytes, name: str = "ova.xml", size: bytes = b"00000000020\0") -> bytes:
    """A block whose sum is right."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)[:512])
    block[156:157], block[124:136] = kind, size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("name", ["ova.xml", "./ova.xml"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_archives_that_senders_make_are_read(name: str, form: int) -> None:
    assert read_value(archive(tarfile.TarInfo(name), write_value(VALUE), form))["version"] == {"hostname": "a"}


def test_a_vm_with_a_disk_in_its_archive() -> None:
    """What follows the first file is not looked at."""
    assert read_value(archive(tarfile.TarInfo("ova.xml"), write_value("a")) + b"x" * 5000) == "a"


SPARSE = bytearray(header(b"S"))
SPARSE[483:495] = b"77777777777\0"  # GNU's real size: 8 GiB
DIGITS = b"9" * 20_000

HOSTILE = {
    "sparse": bytes(SPARSE) + bytes(1024),
    "pax": header(b"x", "PaxHeader", b"%011o\0" % len(DIGITS)) + DIGITS + bytes(-len(DIGITS) % 512) + header(b"0"),
    "long names": header(b"L", "././@LongLink") * 8000,
    "longer than it is": header(b"0", size=b"77777777777\0") + write_value("a"),
    "a size in binary": header(b"0", size=b"\x80" + b"\xff" * 11) + write_value("a"),
    "no size": header(b"0", size=b"-0000000001\0") + write_value("a"),
    "a link": header(b"2") + write_value("a"),
    "another file": header(b"0", "etc/passwd") + write_value("a"),
    "a wrong sum": header(b"0").replace(b"ustar\x0000", b"ustar\x0001") + write_value("a"),
    "cut": header(b"0")[:300],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_is_refused_at_once(name: str) -> None:
    spent = []
    for _ in range(3):
        begun = time.process_time()
        with pytest.raises(ImportError_):
            read_value(HOSTILE[name])
        spent.append(time.process_time() - begun)
    assert min(spent) < LIMIT
