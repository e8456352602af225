"""What a uuid of a XenAPI object looks like. Those of VMs and VDIs become names of files and folders here."""

from __future__ import annotations

import re

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
