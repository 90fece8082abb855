"""What CDI devices change in a container's OCI spec. Looks at this machine's device nodes.

Source: CDI specification 1.1.0, "OCI Edits"; OCI runtime specification 1.3, config-linux.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyctr_wire.errors import FailedPrecondition
from pyctrd.cdi.documents import Edits

_RDT: Final = ("closID", "schemata", "l3CacheSchema", "memBwSchema")
_MONITORING: Final = ("enableMonitoring", "enableCMT", "enableMBM")  # the last two have become the first
_BINDS: Final = frozenset({"bind", "rbind"})


def apply(spec: dict[str, Any], all_edits: Iterable[Edits]) -> None:
    """Change `spec`. Raises FailedPrecondition for a device node that this machine has not."""
    linux, process = spec["linux"], spec["process"]
    for edits in all_edits:
        entries = (*process["env"], *(edits.get("env") or ()))
        process["env"] = list({entry.partition("=")[0]: entry for entry in entries}.values())
        for node in edits.get("deviceNodes") or ():
            _add_node(linux, process["user"], node)
        for mount in edits.get("mounts") or ():
            _add_mount(spec, mount)
        for hook in edits.get("hooks") or ():
            of_this_kind = spec.setdefault("hooks", {}).setdefault(hook["hookName"], [])
            of_this_kind.append({key: value for key, value in hook.items() if key != "hookName" and value is not None})
        for device in edits.get("netDevices") or ():
            linux.setdefault("netDevices", {})[device["hostInterfaceName"]] = {"name": device["name"]}
        if rdt := edits.get("intelRdt"):
            linux["intelRdt"] = _resource_director(rdt)
        groups = process["user"].setdefault("additionalGids", [])
        groups += [gid for gid in dict.fromkeys(edits.get("additionalGids") or ()) if gid and gid not in groups]
    # Parents first, whatever has come in between.
    spec["mounts"].sort(key=lambda mount: mount["destination"].rstrip("/").count("/"))


def _add_node(linux: dict[str, Any], user: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    kind, major, minor = node.get("type") or "", node.get("major") or 0, node.get("minor") or 0
    if not kind or (kind != "p" and not major):
        kind, major, minor = _look(node.get("hostPath") or node["path"], kind)
    number = {"type": kind, "major": major, "minor": minor}
    if kind == "p":
        number = {"type": kind}
    # Whoever the container runs as can use it, unless it is said whose it is.
    owners = {key: user[key] or None if node.get(key) is None else node[key] for key in ("uid", "gid")}
    owner = {key: value for key, value in owners.items() if value is not None}
    mode = {"fileMode": stat.S_IMODE(node["fileMode"])} if node.get("fileMode") is not None else {}
    devices = [one for one in linux.get("devices") or () if one["path"] != node["path"]]
    linux["devices"] = [*devices, {"path": node["path"], **number, **mode, **owner}]
    if kind != "p":
        access = node.get("permissions") or "rwm"
        linux["resources"]["devices"].append(
            {"allow": True, **number, "type": kind.replace("u", "c"), "access": access}
        )


def _look(path: str, wanted: str) -> tuple[str, int, int]:
    """Return what kind of node there is on this machine, and its numbers."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise FailedPrecondition(f"CDI: device node {path}: {error.strerror}: is its driver loaded?") from error
    kinds = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "")
    if not kind or wanted.replace("u", "c") not in ("", kind):
        raise FailedPrecondition(f"CDI: device node {path}: it is no {wanted or 'device'} node on this machine")
    return kind, os.major(status.st_rdev), os.minor(status.st_rdev)


def _add_mount(spec: dict[str, Any], mount: Mapping[str, Any]) -> None:
    options, kind = list(mount.get("options") or ()), mount.get("type") or "bind"
    if kind == "bind" and not _BINDS & set(options):
        options.insert(0, "rbind")
    target = mount["containerPath"]
    spec["mounts"] = [one for one in spec["mounts"] if one["destination"] != target]
    spec["mounts"].append({"destination": target, "type": kind, "source": mount["hostPath"], "options": options})


def _resource_director(rdt: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: rdt[key] for key in _RDT if rdt.get(key)}
    if any(rdt.get(key) for key in _MONITORING):
        result["enableMonitoring"] = True
    return result
