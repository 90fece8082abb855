"""Control groups: made, limited, joined, watched and removed."""

from pyctr_shim.oci.cgroups.container_view import mount_view
from pyctr_shim.oci.cgroups.manager import Cgroup, Hierarchies, Resources, mounted
from pyctr_shim.oci.cgroups.manager import cgroup_path as plain_path
from pyctr_shim.oci.cgroups.ownership import owner_of
from pyctr_shim.oci.cgroups.v1 import CgroupV1
from pyctr_shim.oci.cgroups.v2 import CgroupV2
from pyctr_shim.oci.errors import OciError
from pyctr_sys.namespaces import in_user_namespace

__all__ = ["Cgroup", "Hierarchies", "Resources", "cgroup_for", "cgroup_path", "mount_view", "mounted", "owner_of"]


def cgroup_for(hierarchies: Hierarchies, path: str, init_pid: int = 0) -> Cgroup:
    """Return the cgroup at `path` in whichever version the machine has. Raises OciError if it has none.

    A path that is not absolute is a scope of systemd's. Where an ordinary user has no cgroup, `init_pid` is by which
    the container's processes are found, if it has any.
    """
    if not path.startswith("/"):
        from pyctr_shim.oci.cgroups import systemd  # seldom asked for

        return systemd.cgroup_of(hierarchies, path)
    if hierarchies.is_v2:
        return CgroupV2(hierarchies, path)
    if hierarchies.controllers:
        return CgroupV1(hierarchies, path)
    if in_user_namespace():
        from pyctr_shim.oci.cgroups.absent import NoCgroup

        return NoCgroup(path, init_pid)
    raise OciError("no cgroups are mounted on /sys/fs/cgroup")


def cgroup_path(spec_path: str, container: str, *, of_systemd: bool) -> str:
    """Return where a container's cgroup is to be, for `cgroup_for`. Raises OciError for what is no such place."""
    if not of_systemd:
        return plain_path(spec_path, container)
    from pyctr_shim.oci.cgroups import systemd

    return systemd.unit_path(spec_path, container)
