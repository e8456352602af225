"""What the images of each SR need on this host before they are opened, and after they are closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs


@attrs.frozen
class ImageCalls:
    """What has to be done for an image before it is opened (repeatable), and after the last datapath that used it is
    gone (raises nothing)."""

    attach: Callable[[str], Awaitable[None]]
    detach: Callable[[str], Awaitable[None]]


class Images:
    """The calls of each SR. One without any needs nothing. A datapath makes them by itself."""

    def __init__(self) -> None:
        self._calls: dict[str, ImageCalls] = {}

    def of_sr(self, sr: str, calls: ImageCalls) -> None:
        """Images of this SR need these."""
        self._calls[sr] = calls

    async def attach(self, sr: str, vdi: str) -> None:
        """Make an image reachable on this host. SrBackendFailure."""
        if sr in self._calls:
            await self._calls[sr].attach(vdi)

    async def detach(self, sr: str, vdi: str) -> None:
        """An image is not used on this host any more."""
        if sr in self._calls:
            await self._calls[sr].detach(vdi)
