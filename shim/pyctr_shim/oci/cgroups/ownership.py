"""Whose a container's cgroup is to be, so that a systemd in it can make cgroups of its own.

Source: OCI runtime specification 1.3, config-linux.md, "Cgroup ownership".
"""

import os
from collections.abc import Mapping
from typing import Any

from pyctr_shim.oci.cgroups.manager import MOUNT_POINT


def owner_of(spec: Mapping[str, Any]) -> int | None:
    """Return the host's uid of the container's user if the spec asks for a cgroup of its own to write to, else None."""
    linux = spec["linux"]
    namespaces = {item["type"]: item.get("path") for item in linux.get("namespaces") or ()}
    if namespaces.get("cgroup", "none"):
        return None  # shared with others
    if not any(map(_shows_cgroups_writable, spec.get("mounts") or ())):
        return None
    uid: int = ((spec.get("process") or {}).get("user") or {}).get("uid") or 0
    if "user" not in namespaces:
        return uid
    for item in linux.get("uidMappings") or ():
        if 0 <= uid - item["containerID"] < item["size"]:
            return int(item["hostID"] + uid - item["containerID"])
    return None  # a joined namespace's maps are not for us to know


def _shows_cgroups_writable(mount: Mapping[str, Any]) -> bool:
    if mount.get("type") not in {"cgroup", "cgroup2"} or "ro" in (mount.get("options") or ()):
        return False
    return bool(os.path.normpath(mount["destination"]) == MOUNT_POINT)
