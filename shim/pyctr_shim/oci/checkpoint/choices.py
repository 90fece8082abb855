"""What whoever saves or restores may choose."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.namespaces import KINDS

# CRIU's numbers for them.
CGROUP_MODES: Final[Mapping[str, int]] = {"": 0, "ignore": 0, "none": 1, "props": 2, "soft": 3, "full": 4, "strict": 5}


class Common(NamedTuple):
    """What is chosen for both ways alike.

    `images` is the directory of the checkpoint, `work` one for CRIU's log and statistics, "" for none that stays. By
    default cgroups are not CRIU's affair: what limits a restored container is its own spec, not what was saved.
    """

    images: str
    work: str = ""
    program: str = "criu"
    tcp_established: bool = False
    external_unix_sockets: bool = False
    shell_job: bool = False
    file_locks: bool = False
    auto_dedup: bool = False
    lazy_pages: bool = False
    cgroup_mode: str = ""
    empty_namespaces: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise OciError for a name that is none."""
        if self.cgroup_mode not in CGROUP_MODES:
            known = ", ".join(name for name in CGROUP_MODES if name)
            raise OciError(f"cgroups mode {self.cgroup_mode!r} is none of {known}")
        for name in self.empty_namespaces:
            if name not in KINDS:
                raise OciError(f"empty namespace {name!r} is none of {', '.join(sorted(KINDS))}")


class Dump(NamedTuple):
    """How to save; `parent` is the directory of an earlier pre-dump, relative to the images or absolute.

    `page_server` is ("address", port) of who takes the pages instead, `status_fd` (-1: none) is written to once CRIU
    waits to be asked for pages.
    """

    common: Common
    leave_running: bool = False
    pre_dump: bool = False
    parent: str = ""
    tcp_skip_in_flight: bool = False
    link_remap: bool = False
    page_server: tuple[str, int] | None = None
    status_fd: int = -1


class Restore(NamedTuple):
    """How to restore; the labels are for those who know better than the spec, and "" otherwise."""

    common: Common
    lsm_profile: str = ""
    lsm_mount_context: str = ""
