"""The child process of PipeDomains: `python -m xapi_migrate.testing.pipe_hypervisor save|restore`.

As libxl's: it writes to, or reads from, descriptor 3 as it pleases, blocking, one way only. `save` takes the memory and
then the rest of the state from stdin (a length of 8 bytes before each) and says "suspended" on stdout in between;
`restore` says what it read, in hexadecimal. The stream: "PIPE1\\n", both parts with their lengths, "END\\n".
"""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

STREAM_FD = 3
MAGIC = b"PIPE1\n"
END = b"END\n"


def take(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError("the stream broke off")
    return data


def part(source: BinaryIO) -> bytes:
    """A length of 8 bytes, and so many bytes."""
    return take(source, int.from_bytes(take(source, 8), "big"))


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def save(stream: BinaryIO) -> None:
    stream.write(MAGIC + framed(part(sys.stdin.buffer)))
    stream.flush()
    print("suspended", flush=True)
    stream.write(framed(part(sys.stdin.buffer)) + END)


def restore(stream: BinaryIO) -> None:
    if take(stream, len(MAGIC)) != MAGIC:
        raise ValueError("the stream is not one of this hypervisor's")
    part(stream)
    state = part(stream)
    if take(stream, len(END)) != END:
        raise ValueError("the stream has no end mark")
    print(state.hex(), flush=True)


def main() -> int:
    try:
        if sys.argv[1] == "save":
            with os.fdopen(STREAM_FD, "wb") as stream:
                save(stream)
        else:
            with os.fdopen(STREAM_FD, "rb") as stream:
                restore(stream)
    except (OSError, EOFError, ValueError) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
