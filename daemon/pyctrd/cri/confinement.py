"""AppArmor of a pod's container. Source: BEHAVIOUR of containerd's CRI; apparmor(7)."""

from pathlib import Path
from typing import Final

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument

_APPARMOR: Final = Path("/sys/module/apparmor/parameters/enabled")
_PROFILES: Final = Path("/sys/kernel/security/apparmor/profiles")
_DEFAULT: Final = "cri-containerd.apparmor.d"


def apparmor_profile(security: runtime_pb2.LinuxContainerSecurityContext) -> str:
    """Return the AppArmor profile of a container, "" for none.

    Raises FailedPrecondition for a profile that is not loaded, or not without AppArmor; InvalidArgument.
    """
    wanted, profile = _wanted(security)
    if security.privileged or wanted == "unconfined":
        return ""
    if not _is_enabled():
        if wanted == "localhost":
            raise FailedPrecondition(f"apparmor profile {profile}: AppArmor is not there on this machine")
        return ""
    if wanted == "default" and not security.HasField("apparmor") and not security.apparmor_profile:
        return _DEFAULT if _is_loaded(_DEFAULT) else ""
    name = _DEFAULT if wanted == "default" else profile
    if not _is_loaded(name):
        raise FailedPrecondition(f"apparmor profile not found {name}: load it with apparmor_parser")
    return name


def _wanted(security: runtime_pb2.LinuxContainerSecurityContext) -> tuple[str, str]:
    """Return "default", "unconfined" or "localhost" with the name of a profile."""
    kinds = image_pb2.SecurityProfile
    if security.HasField("apparmor"):
        profile = security.apparmor
        if profile.profile_type == kinds.Localhost:
            return "localhost", profile.localhost_ref.removeprefix("localhost/")
        return ("unconfined" if profile.profile_type == kinds.Unconfined else "default"), ""
    text = security.apparmor_profile
    if text.startswith("localhost/"):
        return "localhost", text.removeprefix("localhost/")
    if text not in ("", "runtime/default", "unconfined"):
        raise InvalidArgument(f"apparmor_profile {text[:80]!r} is not a profile")
    return ("unconfined" if text == "unconfined" else "default"), ""


def _is_enabled() -> bool:
    return _APPARMOR.exists() and _APPARMOR.read_text().strip() == "Y"


def _is_loaded(name: str) -> bool:
    return any(line.split(" (")[0] == name for line in _PROFILES.read_text().splitlines())
