"""Networks: records that stand for bridges of this host, and what a VIF on one of them is connected to.

A network without a bridge connects nothing. One with a bridge is there where the host has that bridge. Bridges are the
administrator's; the only ones that are made here are those of networks that were created with `managed` and a name.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from xapi_migrate.errors import InvalidValue
from xapi_migrate.refusals import BridgeNotAvailable, NetworkInUse
from xapi_migrate.store.interfaces import NULL
from xapi_migrate.store.records import Records
from xapi_migrate.toolstack.bridges import Bridges

REFUSE = "refuse"
DISCONNECT = "disconnect"
_LARGEST_MTU = 65535


class Networks:
    """`without_bridge` says what becomes of a VIF whose network's bridge is not here: see the configuration."""

    log = Logger()

    def __init__(self, records: Records, bridges: Bridges, without_bridge: str = REFUSE) -> None:
        if without_bridge not in (REFUSE, DISCONNECT):
            raise InvalidValue("without_bridge", without_bridge)
        self._records = records
        self._bridges = bridges
        self._disconnect = without_bridge == DISCONNECT

    async def open(self) -> None:
        """Make the bridges again that were made here and went when the host was started anew."""
        for ref in self._records.find("network", _made=True):
            record = self._records.get("network", ref)
            if self._bridges.lacking(record["bridge"]):
                try:
                    await self._bridges.make(record["bridge"], record["MTU"])
                except OSError as failure:
                    self.log.error("Network {network}: no bridge: {reason}", network=ref, reason=failure)

    def check(self, network: str) -> None:
        """BridgeNotAvailable if a VIF on the network cannot be connected and must be."""
        if network == NULL or self._disconnect:
            return
        bridge = self._records.get("network", network)["bridge"]
        reason = self._bridges.lacking(bridge) if bridge else ""
        if reason:
            raise BridgeNotAvailable(bridge, network, reason)

    def attachable(self, network: str) -> bool:
        """Whether `check` finds nothing."""
        try:
            self.check(network)
        except BridgeNotAvailable:
            return False
        return True

    def bridge_of(self, network: str) -> str:
        """The bridge that a VIF on the network goes on; "" if it is connected to nothing."""
        if network == NULL:
            return ""
        bridge = str(self._records.get("network", network)["bridge"])
        if bridge and self._disconnect and (reason := self._bridges.lacking(bridge)):
            self.log.warn("A VIF is not connected to bridge {bridge}: {reason}", bridge=bridge, reason=reason)
            return ""
        return bridge

    async def create(self, **fields: Any) -> str:
        """network.create. With a bridge's name alone the bridge must be there; with `managed` too it must not, and is
        made. BridgeNotAvailable, InvalidValue."""
        bridge, managed = fields.get("bridge", ""), bool(fields.pop("managed", False))
        mtu = fields.setdefault("MTU", 1500)
        if not 68 <= mtu <= _LARGEST_MTU:
            raise InvalidValue("MTU", str(mtu))
        made = bool(bridge) and managed
        if made:
            if self._records.find("network", bridge=bridge):
                raise BridgeNotAvailable(bridge, NULL, "another network has it")
            try:
                await self._bridges.make(bridge, mtu)
            except OSError as failure:
                raise BridgeNotAvailable(bridge, NULL, str(failure)) from None
        elif bridge and (reason := self._bridges.lacking(bridge)):
            raise BridgeNotAvailable(bridge, NULL, reason)
        return self._records.create("network", managed=managed or not bridge, _made=made, **fields)

    async def destroy(self, network: str) -> None:
        """network.destroy, with the bridge if it was made for it. NetworkInUse."""
        record = self._records.get("network", network)
        for field in ("VIFs", "PIFs"):
            if record[field]:
                raise NetworkInUse(network, field, tuple(record[field]))
        self._records.destroy("network", network)
        if record.get("_made"):
            try:
                await self._bridges.remove(record["bridge"])
            except OSError as failure:
                self.log.error("Bridge {bridge} stays: {reason}", bridge=record["bridge"], reason=failure)
