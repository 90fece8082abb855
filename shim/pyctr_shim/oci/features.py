"""What this runtime can do, as the document of the OCI runtime specification's features.md.

What only the machine lacks counts as done: asking for it is an error that names it.
"""

import platform
from typing import Any, Final

from pyctr_shim.oci import hooks, mount_options, namespaces, scheduling, seccomp
from pyctr_shim.oci.state import OCI_VERSION
from pyctr_sys import capabilities
from pyctr_sys.calls import ffi

OCI_VERSION_MIN: Final = "1.0.0"


def document() -> dict[str, Any]:
    """Return the features. `seccomp.enabled` says whether libseccomp is installed now."""
    return {
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION,
        "hooks": list(hooks.KINDS),
        "mountOptions": mount_options.FEATURES,
        "linux": {
            "namespaces": sorted(namespaces.KINDS),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": _has_libseccomp(),
                "actions": list(seccomp.ACTIONS),
                "operators": list(seccomp.OPERATORS),
                "archs": list(seccomp.ARCHITECTURES),
                "knownFlags": list(seccomp.FLAGS),
                "supportedFlags": list(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
            "memoryPolicy": {"modes": list(scheduling.MEMORY_MODES), "flags": list(scheduling.MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
        "potentiallyUnsafeConfigAnnotations": [],  # no annotation changes what this runtime does
        "annotations": {"org.pyctr.oci.python": platform.python_version()},
    }


def _has_libseccomp() -> bool:
    try:
        ffi.dlopen(seccomp.LIBRARY)
    except OSError:
        return False
    return True
