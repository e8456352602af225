"""What this server says of itself. Clients choose their dialect, and what they offer, by these."""

from __future__ import annotations

import attrs

from xapi_migrate.xenapi.datamodel import DataModel

# Clients take an absent restriction for one that holds.
_UNRESTRICTED = (
    "connection", "storage_xen_motion", "dmc", "pooling", "pool_size", "cross_pool_migration", "hotfix_apply",
    "network_sriov", "vif_locking", "rbac", "email_alerting", "checkpoint",
)  # fmt: skip


@attrs.frozen
class Profile:
    """`product_version` and `platform_version` must be dotted numbers: clients compare them."""

    product_brand: str = "XCP-ng"
    product_version: str = "8.3.0"
    platform_version: str = "3.4.0"
    build_number: str = "xapi_migrate"
    name: str = "default"

    def software_version(self, model: DataModel) -> dict[str, str]:
        major, minor = model.api_version
        return {
            "product_brand": self.product_brand, "product_version": self.product_version,
            "product_version_text": self.product_version, "product_version_text_short": self.product_version,
            "platform_name": "XCP", "platform_version": self.platform_version, "build_number": self.build_number,
            "xapi": f"{major}.{minor}", "xencenter_min": "1", "xencenter_max": "27", "hostname": "localhost",
        }  # fmt: skip

    def license_params(self) -> dict[str, str]:
        return {**{f"restrict_{name}": "false" for name in _UNRESTRICTED}, "expiry": "20991231T00:00:00Z"}
