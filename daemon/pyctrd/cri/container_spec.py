"""The OCI spec of a pod's container, from its request, its pod and its image. No I/O.

Everything that needs a look at this machine or at the image's files comes in as `Found`.
"""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci import default_seccomp, default_spec
from pyctr_wire.oci.image_spec import ProcessConfig
from pyctrd.core.values import dataclass
from pyctrd.cri.convert import enum_name
from pyctrd.cri.records import Pod
from pyctrd.cri.selinux import Labels
from pyctrd.runtime import run_options
from pyctrd.runtime.image_user import User
from pyctrd.runtime.run_options import Device, is_environment_entry, merged_environment
from pyctrd.runtime.run_spec import MAPPED, user_document, working_directory

_ANNOTATIONS: Final = "io.kubernetes.cri."
_RUNC: Final = "containerd-shim-runc-"
_PROPAGATION: Final = {
    runtime_pb2.PROPAGATION_PRIVATE: "rprivate",
    runtime_pb2.PROPAGATION_HOST_TO_CONTAINER: "rslave",
    runtime_pb2.PROPAGATION_BIDIRECTIONAL: "rshared",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What the daemon looked up. Paths are this machine's."""

    container_id: str
    user: User
    capabilities: frozenset[str]  # that the daemon has to give
    machine: str  # uname -m
    hostname: str
    files: Mapping[str, str]  # path in the container → here: hostname, hosts, resolv.conf, shm
    namespaces: Mapping[str, str]  # kind → path of one to join; "" for a new one; not there: the host's
    volumes: Mapping[str, str]  # path in the container → here, of the image's volumes
    sources: Mapping[str, str]  # a mount's host path → what it leads to
    images: Mapping[int, str]  # the number of a mount that is an image → where that is
    devices: Sequence[Device]
    seccomp: dict[str, Any] | None  # a profile from a file
    apparmor: str  # a profile's name, "" for none
    selinux: Labels
    cgroup_namespaces: bool
    hugepage_limits: bool  # whether the kernel has them
    image_name: str


def build_spec(pod: Pod, config: runtime_pb2.ContainerConfig, image: ProcessConfig, found: Found) -> dict[str, Any]:
    """Return the spec. Raises InvalidArgument naming the field."""
    security = config.linux.security_context
    privileged = security.privileged
    spec = default_spec.default_spec()
    spec["process"] = _process(config, image, found)
    spec["root"]["readonly"] = security.readonly_rootfs
    spec["mounts"] = _mounts(pod, config, found)
    spec["annotations"] = _annotations(pod, config, found)
    linux = spec["linux"]
    linux["cgroupsPath"] = cgroup_path(pod.config.linux.cgroup_parent, found.container_id)
    linux["namespaces"] = [
        {"type": kind, "path": path} if path else {"type": kind} for kind, path in found.namespaces.items()
    ]
    linux["resources"].update(resources(config.linux.resources, hugepages=found.hugepage_limits))
    linux["maskedPaths"] = [] if privileged else list(security.masked_paths)
    linux["readonlyPaths"] = [] if privileged else list(security.readonly_paths)
    if found.devices:
        linux["devices"] = [device.node for device in found.devices]
    if privileged:
        linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    else:
        linux["resources"]["devices"] += [device.rule for device in found.devices]
    propagations = {_PROPAGATION[mount.propagation] for mount in config.mounts}
    if propagation := next((one for one in ("rshared", "rslave") if one in propagations), ""):
        linux["rootfsPropagation"] = propagation
    if found.selinux.files:
        linux["mountLabel"] = found.selinux.files
    profile = _seccomp(security, found, spec["process"]["capabilities"]["bounding"])
    if profile is not None and not privileged:
        linux["seccomp"] = profile
    return spec


def cgroup_path(parent: str, id: str) -> str:
    """Return a container's cgroup: systemd's form below a slice."""
    if _is_slice(parent):
        return f"{posixpath.basename(parent)}:cri-containerd:{id}"
    return f"{parent.rstrip('/') or '/k8s.io'}/{id}"


def _is_slice(parent: str) -> bool:
    return posixpath.basename(parent).endswith(".slice")


def task_options(pod: Pod, shim: str = "") -> AnyMessage | None:
    """Return how a runtime is to make containers of the pod, if not as ever: systemd has to make what is in a slice.

    Of shims of other makes those for runc know such options.
    """
    if not _is_slice(pod.config.linux.cgroup_parent) or not posixpath.basename(shim or _RUNC).startswith(_RUNC):
        return None
    options = oci_pb2.Options(systemd_cgroup=True)
    return AnyMessage(type_url=options.DESCRIPTOR.full_name, value=options.SerializeToString())


def resources(limits: image_pb2.LinuxContainerResources, *, hugepages: bool) -> dict[str, Any]:
    """Return the OCI resources that these limits ask for, without devices; no `hugepages` where the kernel has none."""
    result: dict[str, Any] = {}
    cpu = {
        "shares": limits.cpu_shares,
        "quota": limits.cpu_quota,
        "period": limits.cpu_period,
        "cpus": limits.cpuset_cpus,
        "mems": limits.cpuset_mems,
    }
    memory = {"limit": limits.memory_limit_in_bytes, "swap": limits.memory_swap_limit_in_bytes}
    if cpu := {key: value for key, value in cpu.items() if value}:
        result["cpu"] = cpu
    if memory := {key: value for key, value in memory.items() if value}:
        result["memory"] = memory
    if limits.hugepage_limits and hugepages:
        result["hugepageLimits"] = [{"pageSize": one.page_size, "limit": one.limit} for one in limits.hugepage_limits]
    if limits.unified:
        result["unified"] = dict(limits.unified)
    return result


def merged(old: Any, new: Any) -> Any:
    """Return `old` with the values of `new` in their places, which are objects or whole values."""
    return {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new


def _process(config: runtime_pb2.ContainerConfig, image: ProcessConfig, found: Found) -> dict[str, Any]:
    security, process = config.linux.security_context, default_spec.default_process()
    args = [*config.command, *config.args] if config.command else [*image.entrypoint, *(config.args or image.cmd)]
    if not args:
        raise InvalidArgument("no command specified")
    process["args"] = args
    process["cwd"] = working_directory(config.working_dir or image.working_dir)
    process["env"] = merged_environment(
        [default_spec.DEFAULT_PATH, *([f"HOSTNAME={found.hostname}"] if found.hostname else [])],
        ["TERM=xterm"] if config.tty else [],
        [entry for entry in image.env if is_environment_entry(entry)],
        _environment(config),
    )
    process["terminal"] = config.tty
    process["user"] = user_document(found.user)
    process["noNewPrivileges"] = security.no_new_privs
    if found.apparmor:
        process["apparmorProfile"] = found.apparmor
    if found.selinux.process:
        process["selinuxLabel"] = found.selinux.process
    process["oomScoreAdj"] = config.linux.resources.oom_score_adj
    process["capabilities"] = _capability_sets(security, found)
    return process


def _environment(config: runtime_pb2.ContainerConfig) -> list[str]:
    entries = []
    for env in config.envs:
        try:
            entry = f"{env.key}={env.value.decode()}"
        except UnicodeDecodeError:
            raise InvalidArgument(f"envs: the value of {env.key[:80]!r} is not UTF-8") from None
        if not is_environment_entry(entry):
            raise InvalidArgument(f"envs: {env.key[:80]!r} cannot be a variable")
        entries.append(entry)
    return entries


def _capability_sets(security: runtime_pb2.LinuxContainerSecurityContext, found: Found) -> dict[str, list[str]]:
    wanted = security.capabilities
    if security.privileged:
        add, drop = ["ALL"], []
    else:
        add, drop = [*wanted.add_capabilities, *wanted.add_ambient_capabilities], list(wanted.drop_capabilities)
    chosen = run_options.capabilities(add, drop, found.capabilities)
    sets = default_spec.capability_sets(chosen)
    if wanted.add_ambient_capabilities:
        names = run_options.capabilities(wanted.add_ambient_capabilities, ["ALL"], found.capabilities)
        sets["ambient"] = sets["inheritable"] = list(names)
    return sets


def _mounts(pod: Pod, config: runtime_pb2.ContainerConfig, found: Found) -> list[dict[str, Any]]:
    """Return all mounts, parents first; a request's mount replaces ours at the same place."""
    security = config.linux.security_context
    defaults = [*default_spec.default_mounts(), default_spec.cgroup_mount()]
    if security.privileged:
        for mount in defaults:
            if mount["destination"] in ("/sys", "/sys/fs/cgroup"):
                mount["options"] = [option for option in mount["options"] if option != "ro"]
    if pod.namespace_options.network == image_pb2.NODE and "user" in found.namespaces:
        defaults = [_read_only_sys() if mount["destination"] == "/sys" else mount for mount in defaults]
    access = "ro" if security.readonly_rootfs else "rw"
    # What is root's here is the container's root's: but /dev/shm, a tmpfs whose owner is that already.
    mapped = (MAPPED,) if "user" in found.namespaces else ()
    defaults = [mount for mount in defaults if mount["destination"] not in found.files]
    for there, here in found.files.items():
        is_shm = there == "/dev/shm"  # noqa: S108 - a path in the container
        defaults.append(_bind(here, there, "rprivate", "rw" if is_shm else access, *(() if is_shm else mapped)))
    chosen = [
        _bind(found.images[number], absolute(mount.container_path), "rprivate", "ro")
        if number in found.images
        else _requested(mount, found)
        for number, mount in enumerate(config.mounts)
    ]
    chosen += [_bind(here, there, "rprivate", "rw", *mapped) for there, here in found.volumes.items()]
    taken = {mount["destination"] for mount in chosen}
    for whole in taken & {"/dev", "/sys"}:
        defaults = [mount for mount in defaults if not mount["destination"].startswith(whole + "/")]
    kept = [mount for mount in defaults if mount["destination"] not in taken]
    return kept + sorted(chosen, key=lambda mount: mount["destination"].count("/"))


def _requested(mount: runtime_pb2.Mount, found: Found) -> dict[str, Any]:
    target = absolute(mount.container_path)
    if mount.recursive_read_only:
        if not mount.readonly:
            raise InvalidArgument("recursive read-only mount conflicts with RW mount")
        if mount.propagation != runtime_pb2.PROPAGATION_PRIVATE:
            raise InvalidArgument("recursive read-only mount needs private propagation")
    access = "rro" if mount.recursive_read_only else "ro" if mount.readonly else "rw"
    result = _bind(found.sources[mount.host_path], target, _PROPAGATION[mount.propagation], access)
    for key, mappings in (("uidMappings", mount.uidMappings), ("gidMappings", mount.gidMappings)):
        if mappings:
            result[key] = [
                {"containerID": one.container_id, "hostID": one.host_id, "size": one.length} for one in mappings
            ]
    return result


def absolute(path: str) -> str:
    """Return a clean absolute path, whatever it looked like."""
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def _bind(source: str, target: str, propagation: str, access: str, *more: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", propagation, access, *more]}


def _read_only_sys() -> dict[str, Any]:
    return {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "rprivate", "rro"]}


def _seccomp(
    security: runtime_pb2.LinuxContainerSecurityContext, found: Found, capabilities: Sequence[str]
) -> dict[str, Any] | None:
    profile, kinds = security.seccomp, image_pb2.SecurityProfile
    old = security.seccomp_profile_path
    if security.HasField("seccomp"):
        if profile.localhost_ref and profile.profile_type != kinds.Localhost:
            raise InvalidArgument("seccomp config invalid LocalhostRef must only be set if ProfileType is Localhost")
        wanted = enum_name(kinds.ProfileType, profile.profile_type)
        if wanted not in ("RuntimeDefault", "Unconfined", "Localhost"):
            raise InvalidArgument(f"seccomp profile type {wanted} is not one")
    else:
        wanted = {"": "Unconfined", "unconfined": "Unconfined"}.get(old, "RuntimeDefault")
        if old.startswith("localhost/"):
            wanted = "Localhost"
        elif old not in ("", "unconfined", "runtime/default", "docker/default"):
            raise InvalidArgument(f"seccomp_profile_path {old[:80]!r} is not a profile")
    if wanted == "RuntimeDefault":
        return default_seccomp.default_profile(capabilities, found.machine)
    if wanted == "Localhost" and found.seccomp is not None:
        return default_seccomp.from_docker_profile(found.seccomp, capabilities, found.machine)
    return None


def seccomp_file(security: runtime_pb2.LinuxContainerSecurityContext) -> str:
    """Return the path of the profile that the container wants from this machine, "" for none."""
    if security.privileged:
        return ""
    if security.HasField("seccomp"):
        wanted = security.seccomp.profile_type == image_pb2.SecurityProfile.Localhost
        return security.seccomp.localhost_ref if wanted else ""
    path = security.seccomp_profile_path
    return path.removeprefix("localhost/") if path.startswith("localhost/") else ""


def pod_annotations(pod: Pod, kind: str) -> dict[str, str]:
    """Return what the spec of a pod's container, or with the kind `sandbox` its first one, says of the pod.

    Shims of other makes go by it: which containers are together, and which of them is the pod.
    """
    meta = pod.config.metadata
    return {
        f"{_ANNOTATIONS}container-type": kind,
        f"{_ANNOTATIONS}sandbox-id": pod.id,
        f"{_ANNOTATIONS}sandbox-name": meta.name,
        f"{_ANNOTATIONS}sandbox-namespace": meta.namespace,
        f"{_ANNOTATIONS}sandbox-uid": meta.uid,
    }


def _annotations(pod: Pod, config: runtime_pb2.ContainerConfig, found: Found) -> dict[str, str]:
    return {
        **pod_annotations(pod, "container"),
        f"{_ANNOTATIONS}container-name": config.metadata.name,
        f"{_ANNOTATIONS}image-name": found.image_name,
    }
