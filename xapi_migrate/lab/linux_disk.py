"""Writes the Linux guest's disk, in a process of its own: python -m xapi_migrate.lab.linux_disk IMAGE SIZE CACHE."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, task

from ..testing.guests.linux import GuestBuildFailed, linux_image


def main(reactor: Any, image: str, size: str, cache: str) -> defer.Deferred[None]:
    """For `task.react`."""

    async def build() -> None:
        try:
            await linux_image(Path(image), Path(cache), int(size))
        except GuestBuildFailed as failure:
            raise SystemExit(f"The Linux guest could not be built: {failure}.") from None

    return defer.Deferred.fromCoroutine(build())


if __name__ == "__main__":
    task.react(main, sys.argv[1:])
