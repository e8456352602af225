"""On the path of a process that would load libxl: it gets the stand-in. See tests/xen/fake_xen.py."""

import sys

from tests.xen import fake_libxl

sys.modules["xapi_migrate.domains.libxl"] = fake_libxl
