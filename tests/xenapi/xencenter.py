"""XenCenter's wire: what its two protocols take for a value, what they stumble over, and the fields that it reads."""

from __future__ import annotations

import http.client
import json
from datetime import UTC, datetime
from typing import Any, Protocol
from xml.etree import ElementTree

# Class -> field -> type; what is absent, or of another type, breaks its connection, its wizard, or hides the object.
FIELDS: dict[str, dict[str, type]] = {
    "pool": {"master": str, "name_label": str, "other_config": dict},
    "host": {
        "API_version_major": int, "API_version_minor": int, "uuid": str, "name_label": str, "address": str,
        "enabled": bool, "software_version": dict, "license_params": dict, "metrics": str, "other_config": dict,
        "cpu_info": dict,
    },
    "host_metrics": {"live": bool},
    "PIF": {"management": bool, "network": str, "host": str, "managed": bool, "other_config": dict},
    "network": {"name_label": str, "PIFs": list, "VIFs": list, "other_config": dict},
    "PBD": {"host": str, "SR": str, "currently_attached": bool},
    "SM": {"type": str, "capabilities": list},
    "SR": {
        "name_label": str, "uuid": str, "type": str, "content_type": str, "shared": bool, "PBDs": list, "VDIs": list,
        "physical_size": int, "physical_utilisation": int, "other_config": dict,
    },
    "VDI": {
        "name_label": str, "virtual_size": int, "SR": str, "VBDs": list, "managed": bool, "type": str,
        "other_config": dict,
    },
    "VBD": {"VM": str, "VDI": str, "type": str},
    "VIF": {"VM": str, "network": str, "MAC": str},
    "VM": {
        "name_label": str, "resident_on": str, "allowed_operations": list, "power_state": str, "uuid": str,
        "affinity": str, "is_a_template": bool, "is_control_domain": bool, "is_a_snapshot": bool,
        "current_operations": dict, "VBDs": list, "VIFs": list, "other_config": dict, "consoles": list, "metrics": str,
    },
    "VM_metrics": {"memory_actual": int, "start_time": datetime},
    "console": {"location": str, "protocol": str, "VM": str},
    "task": {
        "status": str, "result": str, "progress": float, "error_info": list, "allowed_operations": list,
        "other_config": dict, "created": datetime, "finished": datetime, "resident_on": str, "subtask_of": str,
        "name_label": str,
    },
    "role": {"name_label": str, "subroles": list},
}  # fmt: skip

OLD_CLASSES = [
    "task",
    "pool",
    "VM",
    "VM_metrics",
    "VM_guest_metrics",
    "host",
    "host_crashdump",
    "host_patch",
    "host_metrics",
    "host_cpu",
    "network",
    "VIF",
    "VIF_metrics",
    "PIF",
    "PIF_metrics",
    "SM",
    "SR",
    "VDI",
    "VBD",
    "VBD_metrics",
    "PBD",
    "crashdump",
    "console",
    "pool_patch",
    "Bond",
    "VLAN",
    "blob",
    "message",
    "subject",
    "role",
    "VMPP",
    "tunnel",
    "VM_appliance",
    "DR_task",
    "PCI",
    "PGPU",
    "GPU_group",
    "VGPU",
]
"""All objects of these are fetched, in this order, by the versions that do not know event.from."""


class Refused(Exception):
    """The server's ErrorDescription."""


class Client(Protocol):
    def call(self, method: str, *params: Any) -> Any: ...
    def close(self) -> None: ...


def check_fields(cls: str, record: dict[str, Any]) -> None:
    """That a record has what XenCenter reads of it. Integers may be text: that is how XML-RPC brings them."""
    for name, type_ in FIELDS[cls].items():
        assert name in record, f"{cls}.{name} is absent"
        value = record[name]
        if type_ is int and isinstance(value, str):
            int(value)
        elif type_ is float:
            assert type(value) in (float, int), f"{cls}.{name} is {value!r}"
        elif type_ is datetime and isinstance(value, str):
            datetime.strptime(value, "%Y%m%dT%H:%M:%SZ")
        else:
            assert type(value) is type_, f"{cls}.{name} is {value!r}"


class XmlClient:
    """As the XML-RPC library of the old versions: POST /, one value for one type, integers in records as text only."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(self, method: str, *params: Any) -> Any:
        body = "".join(f"<param>{_xml(param)}</param>" for param in params)
        text = f"<?xml version='1.0'?><methodCall><methodName>{method}</methodName><params>{body}</params></methodCall>"
        headers = {"Content-Type": "text/xml", "User-Agent": "XenCenter/6.2"}
        self._connection.request("POST", "/", text.encode(), headers)
        response = self._connection.getresponse()
        answer = response.read()
        assert response.status == 200 and response.getheader("content-type") == "text/xml"
        root = ElementTree.fromstring(answer)
        assert root.find("fault") is None
        value = _value(root.findall("params/param/value")[0], method)
        assert set(value) in ({"Status", "Value"}, {"Status", "ErrorDescription"})
        if value["Status"] == "Failure":
            raise Refused(value["ErrorDescription"])
        assert value["Status"] == "Success"
        return value["Value"]

    def close(self) -> None:
        self._connection.close()


def _xml(item: Any) -> str:
    if isinstance(item, bool):
        return f"<value><boolean>{int(item)}</boolean></value>"
    if isinstance(item, float):
        return f"<value><double>{item}</double></value>"
    if isinstance(item, dict):
        members = "".join(f"<member><name>{key}</name>{_xml(value)}</member>" for key, value in item.items())
        return f"<value><struct>{members}</struct></value>"
    if isinstance(item, list):
        return f"<value><array><data>{''.join(map(_xml, item))}</data></array></value>"
    return f"<value><string>{str(item).replace('&', '&amp;').replace('<', '&lt;')}</string></value>"


def _value(element: ElementTree.Element, where: str) -> Any:
    if len(element) == 0:
        return element.text or ""
    [inner] = element
    text = inner.text or ""
    match inner.tag:
        case "struct":
            return {
                m.findtext("name"): _value(m.findall("value")[0], f"{where}.{m.findtext('name')}") for m in inner
            }  # fmt: skip
        case "array":
            return [_value(one, where) for one in inner.findall("data/value")]
        case "boolean":
            return {"1": True, "0": False}[text]
        case "double":
            return float(text)
        case "dateTime.iso8601":
            return datetime.strptime(text, "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC)
        case "i4" | "int" if ".valid_ref_counts." in where:
            return int(text)
    raise AssertionError(f"XenCenter cannot take <{inner.tag}> for {where}")


class JsonClient:
    """As the JSON-RPC library of the new ones: POST /jsonrpc, version 2.0."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._id = 0

    def call(self, method: str, *params: Any) -> Any:
        self._id += 1
        body = json.dumps({"jsonrpc": "2.0", "id": self._id, "method": method, "params": list(params)})
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "XenCenter 2023.x"}
        self._connection.request("POST", "/jsonrpc", body.encode(), headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        assert response.status == 200 and response.getheader("content-type") == "application/json"
        assert answer["jsonrpc"] == "2.0" and answer["id"] == self._id
        if "error" in answer:
            error = answer["error"]
            assert set(error) == {"code", "message", "data"} and type(error["code"]) is int
            raise Refused([error["message"], *error["data"]])
        assert set(answer) == {"jsonrpc", "id", "result"}
        return answer["result"]

    def close(self) -> None:
        self._connection.close()
