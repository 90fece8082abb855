"""AppArmor of a pod's container. Source: BEHAVIOUR of containerd's CRI; apparmor(7)."""

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.runtime.apparmor import POD_DEFAULT, AppArmor


def apparmor_profile(security: runtime_pb2.LinuxContainerSecurityContext, apparmor: AppArmor) -> str:
    """Return the AppArmor profile of a container, "" for none.

    What says nothing has the default profile where that can be had. Who asks for it by its name has it wherever
    AppArmor is on, since kubelets ask all nodes. Raises FailedPrecondition for a profile that is not loaded or cannot
    be, or not without AppArmor; InvalidArgument.
    """
    wanted, profile = _wanted(security)
    if security.privileged or wanted == "unconfined":
        return ""
    off = apparmor.why_off()
    if wanted == "localhost":
        if off:
            raise FailedPrecondition(f"apparmor profile {profile}: {off}")
        if not apparmor.has(profile):
            raise FailedPrecondition(f"apparmor profile not found {profile}: load it with apparmor_parser")
        return profile
    if not off and (security.HasField("apparmor") or security.apparmor_profile):
        apparmor.check(POD_DEFAULT)
    return apparmor.default(POD_DEFAULT)


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
