"""The contract of storage: what every ISR and every ISRBackend does. The author of a backend runs these.

Plain coroutines that raise AssertionError; `SR_CHECKS` and `BACKEND_CHECKS` list them for a test runner's
parametrisation. Each gets a fresh kit.
"""

from __future__ import annotations

from xapi_migrate.testing.sm_contract_backend import (
    check_backend_after_a_restart,
    check_backend_full,
    check_backend_nonce,
    check_backend_odd_size,
    check_backend_reads_as_zeroes,
    check_backend_vdi_life,
)
from xapi_migrate.testing.sm_contract_copies import (
    check_cancel,
    check_closed_url,
    check_copy_of_a_halted_disk,
    check_copy_of_a_running_disk,
    check_encrypted_copy,
    check_same_disk,
    check_same_disk_named_in_its_url,
    check_same_disks_at_once,
    check_wrong_password,
)
from xapi_migrate.testing.sm_contract_vdis import (
    check_a_view,
    check_create_and_destroy,
    check_full,
    check_gate,
    check_in_use,
    check_missing,
    check_resize,
    check_sr_must_be_attached,
)
from xapi_migrate.testing.sm_kit import MIB, BackendFactory, SRKit, state_of

__all__ = ["BACKEND_CHECKS", "COPY_CHECKS", "MIB", "SR_CHECKS", "BackendFactory", "SRKit", "state_of"]

SR_CHECKS = (
    check_sr_must_be_attached,
    check_create_and_destroy,
    check_full,
    check_a_view,
    check_missing,
    check_gate,
    check_in_use,
    check_resize,
    check_copy_of_a_running_disk,
    check_encrypted_copy,
    check_same_disk_named_in_its_url,
    check_same_disks_at_once,
    check_copy_of_a_halted_disk,
    check_cancel,
    check_closed_url,
    check_wrong_password,
    check_same_disk,
)

COPY_CHECKS = (
    check_copy_of_a_running_disk,
    check_encrypted_copy,
    check_copy_of_a_halted_disk,
    check_cancel,
    check_closed_url,
)
"""Those in which `theirs` is more than a place: for a backend as receiver."""

BACKEND_CHECKS = (
    check_backend_vdi_life,
    check_backend_reads_as_zeroes,
    check_backend_after_a_restart,
    check_backend_odd_size,
    check_backend_full,
    check_backend_nonce,
)
"""For the author of a backend."""
