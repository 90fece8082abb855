"""Control groups: made, limited, joined, watched and removed."""

from pyctr_shim.oci.cgroups.manager import Cgroup, Hierarchies, Resources, cgroup_path, mounted
from pyctr_shim.oci.cgroups.v1 import CgroupV1
from pyctr_shim.oci.errors import OciError

__all__ = ["Cgroup", "Hierarchies", "Resources", "cgroup_for", "cgroup_path", "mounted"]


def cgroup_for(hierarchies: Hierarchies, path: str) -> Cgroup:
    """Return the cgroup at `path` in whichever version the machine has. Raises OciError if it has none."""
    if hierarchies.is_v2:
        raise OciError("no cgroups are mounted on /sys/fs/cgroup")
    return CgroupV1(hierarchies, path)
