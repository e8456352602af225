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
    """`product_version` and `platform_version` must be dotted numbers: clients compare them. `api_version` None: that
    of the data model."""

    product_brand: str = "XCP-ng"
    product_version: str = "8.3.0"
    platform_version: str = "3.4.0"
    build_number: str = "xapi_migrate"
    name: str = "default"
    api_version: tuple[int, int] | None = None

    def api(self, model: DataModel) -> tuple[int, int]:
        """(major, minor)"""
        return self.api_version or model.api_version

    def software_version(self, model: DataModel) -> dict[str, str]:
        major, minor = self.api(model)
        return {
            "product_brand": self.product_brand, "product_version": self.product_version,
            "product_version_text": self.product_version, "product_version_text_short": self.product_version,
            "platform_name": "XCP", "platform_version": self.platform_version, "build_number": self.build_number,
            "xapi": f"{major}.{minor}", "xencenter_min": "1", "xencenter_max": "27", "hostname": "localhost",
        }  # fmt: skip

    def restrictions(self) -> dict[str, str]:
        return {f"restrict_{name}": "false" for name in _UNRESTRICTED}

    def license_params(self) -> dict[str, str]:
        return {**self.restrictions(), "expiry": "20991231T00:00:00Z"}


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(),
        # XenCenter connects to its own brand only; XCP-ng Center and Xen Orchestra to any
        Profile("XenServer", "8.4.0", "3.4.0", name="xencenter-2023"),
        Profile("Citrix Hypervisor", "8.2.0", "3.2.0", name="xencenter-8.2", api_version=(2, 15)),
        Profile("XenServer", "7.0.0", "2.1.0", name="xencenter-7.0", api_version=(2, 5)),
        # the last API version for which it speaks of storage motion and reads events by event.from
        Profile("XenServer", "6.2.0", "1.8.0", name="xencenter-6.2", api_version=(1, 10)),
        # the newest API version for which it uses event.register and event.next
        Profile("XenServer", "6.0.2", "1.4.90", name="legacy-events", api_version=(1, 9)),
    )
}
"""By name, for `profile` of the configuration."""
