"""What this runtime can do, as the document of the OCI runtime specification's features.md."""

import platform
from typing import Any, Final

from pyctr_shim.oci import hooks, lsm, mount_options, namespaces, seccomp
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
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {
                "enabled": _has_libseccomp(),
                "actions": list(seccomp.ACTIONS),
                "operators": list(seccomp.OPERATORS),
                "archs": list(seccomp.ARCHITECTURES),
                "knownFlags": list(seccomp.FLAGS),
                "supportedFlags": list(seccomp.FLAGS),
            },
            "apparmor": {"enabled": lsm.apparmor_enabled()},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {"org.pyctr.oci.python": platform.python_version()},
    }


def _has_libseccomp() -> bool:
    try:
        ffi.dlopen(seccomp.LIBRARY)
    except OSError:
        return False
    return True
