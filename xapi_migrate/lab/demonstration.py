"""What a demonstration looks at: whether the guest went on counting, and what is left where it was."""

from __future__ import annotations

import attrs
import XenAPI

from ..processes import remains
from ..testing.guests import ticker
from .host import LabHost
from .lab import Lab
from .provisioning import NULL


@attrs.frozen
class Verdict:
    """What the guest's consoles and disks say after it has moved and was then switched off. `lost`: printed, so it had
    been written, and not on the disk at the receiver. `left`: what is still on the source host, in words."""

    before: tuple[int, int]
    after: tuple[int, int]
    breaks: list[tuple[int, int]]
    anomalies: list[str]
    lost: list[int]
    left: list[str]

    @property
    def good(self) -> bool:
        return not (self.breaks or self.anomalies or self.lost or self.left)


def judge(lab: Lab, uuid: str, source: LabHost, destination: LabHost, guest_ticker: ticker.Ticker) -> Verdict:
    """Switch the guest off at its destination, then read what it printed and wrote."""
    old, new = source.console(uuid), destination.console(uuid)
    with destination.server.session() as session:
        api = session.xenapi
        vm = api.VM.get_by_uuid(uuid)
        boot = next(vbd for vbd in api.VM.get_VBDs(vm) if api.VBD.get_userdevice(vbd) == "0")
        vdi = api.VBD.get_VDI(boot)
        image = lab.sr_location(destination, "local-raw") / f"{api.VDI.get_uuid(vdi)}.raw"
        api.VM.hard_shutdown(vm)
    whole = ticker.read(old, new)
    return Verdict(
        before=_ends(ticker.read(old)),
        after=_ends(ticker.read(new)),
        breaks=whole.breaks,
        anomalies=whole.anomalies,
        lost=guest_ticker.lost(image, whole.counters),
        left=left_behind(lab, source, uuid),
    )


def left_behind(lab: Lab, host: LabHost, uuid: str) -> list[str]:
    """What a host still has of a VM that has moved away, and of its disks."""
    left = []
    with host.server.session() as session:
        api = session.xenapi
        try:
            left.append(f"the VM record, {api.VM.get_record(api.VM.get_by_uuid(uuid))['power_state']}")
        except XenAPI.Failure:
            pass  # there is none
        left += [f"VM {vm['name_label']}" for vm in api.VM.get_all_records().values()
                 if not (vm["is_control_domain"] or vm["is_a_template"]) and vm["uuid"] != uuid]  # fmt: skip
        left += [f"VDI {vdi['name_label']}" for vdi in api.VDI.get_all_records().values() if vdi["SR"] != NULL]
    for label in host.srs:
        left += [f"file {path}" for path in lab.sr_location(host, label).glob("*.*")]
    left += [f"process {name.pid} in {folder}" for name, folder in remains.children(host.state_dir).items()
             if "tgt" not in folder.name and "iscsi" not in folder.name]  # fmt: skip
    left += [f"mount {point}" for point in remains.mounts(host.state_dir)]
    return left


def _ends(console: ticker.Console) -> tuple[int, int]:
    return (console.counters[0], console.counters[-1]) if console.counters else (0, 0)
