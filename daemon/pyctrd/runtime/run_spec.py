"""The OCI spec of a new container, from its image's configuration and what the user asked for. No I/O.

Everything that needs a look at this machine or at the image's files has been looked up before and comes
in as `Found`.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Final

from pyctr_wire.errors import InvalidArgument
from pyctr_wire.oci import default_seccomp, default_spec
from pyctr_wire.oci.image_spec import ProcessConfig, load_json
from pyctrd.core.idmaps import Maps
from pyctrd.core.values import dataclass
from pyctrd.runtime import run_options
from pyctrd.runtime.image_user import User
from pyctrd.runtime.run_options import Device, RunOptions

_CPU_PERIOD: Final = 100_000  # microseconds
_INIT_TARGET: Final = "/dev/init"  # on the tmpfs, so that no image's file is touched
_MAX_HOSTNAME: Final = 64
# An option of mounts: files that are root's here are the root's of the container's user namespace in it.
MAPPED: Final = "idmap"


@dataclass(frozen=True, slots=True)
class Found:
    """What the daemon looked up."""

    namespace: str
    container_id: str
    user: User
    capabilities: frozenset[str]  # that the daemon has to give
    machine: str  # uname -m
    host_name: str
    cgroup_namespaces: bool  # this machine has cgroup v2 and nothing else
    apparmor: str = ""  # the profile of what asks for no other
    init_program: str = ""  # a static init on this machine, for --init
    devices: tuple[Device, ...] = ()
    maps: Maps | None = None  # of the user namespace that it gets
    network_files: Mapping[str, str] = field(default_factory=dict)  # path in the container → here; the same: ours


def process_args(image: ProcessConfig, options: RunOptions) -> tuple[str, ...]:
    """Return what to execute, as docker puts it together. Raises InvalidArgument if that is nothing."""
    if options.entrypoint:
        entrypoint = tuple(part for part in options.entrypoint if part)
        args = entrypoint + options.args
    else:
        args = image.entrypoint + (options.args or image.cmd)
    if not args:
        raise InvalidArgument("no command specified: the image has none, so name one")
    return args


def working_directory(text: str) -> str:
    """Return a clean absolute path, "/" for "". Raises InvalidArgument for a relative one and for one in /proc.

    What looks like a directory in /proc may lead out of the container (CVE-2024-21626).
    """
    path = posixpath.normpath(text or "/")
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"the working directory {text!r} must be an absolute path")
    path = "/" + path.lstrip("/")
    if path == "/proc" or path.startswith("/proc/"):
        raise InvalidArgument(f"the working directory {text!r} must not be inside /proc")
    return path


def build_spec(image: ProcessConfig, options: RunOptions, found: Found) -> tuple[dict[str, Any], list[str]]:
    """Return the spec and what the user should be told. Raises InvalidArgument naming the option."""
    if options.network not in ("none", "host"):
        raise InvalidArgument(f"network {options.network!r} is not there: none and host are")
    warnings: list[str] = []
    spec = default_spec.default_spec()
    spec["process"] = _process(image, options, found, warnings)
    spec["root"]["readonly"] = options.read_only
    spec["hostname"] = hostname(options, found)
    spec["mounts"] = _mounts(options, found)
    linux = spec["linux"]
    linux["cgroupsPath"] = f"/{found.namespace}/{found.container_id}"
    linux["namespaces"] = _namespaces(options, found)
    if found.maps is not None:
        _remap(linux, options, found.maps)
    _limit(linux["resources"], options)
    _give_devices(linux, options, found)
    run_options.check_sysctls(options.sysctls, host_network=options.network == "host")
    if options.sysctls:
        linux["sysctl"] = dict(options.sysctls)
    _confine(spec, options, found)
    return spec, warnings


def hostname(options: RunOptions, found: Found) -> str:
    """Return the container's host name. Raises InvalidArgument for one that the kernel would refuse."""
    if len(options.hostname) > _MAX_HOSTNAME or not options.hostname.isprintable():
        raise InvalidArgument(f"host name {options.hostname[:80]!r} is not one")
    return options.hostname or (found.host_name if options.network == "host" else found.container_id[:12])


def _process(image: ProcessConfig, options: RunOptions, found: Found, warnings: list[str]) -> dict[str, Any]:
    process = default_spec.default_process()
    args = process_args(image, options)
    if options.init:
        args = (_INIT_TARGET, "--", *args)
    ignored = [entry for entry in image.env if not run_options.is_environment_entry(entry)]
    if ignored:
        warnings.append(f"{len(ignored)} environment entries of the image are not NAME=VALUE and are left out")
    bad = [entry for entry in options.env if not run_options.is_environment_entry(entry)]
    if bad:
        raise InvalidArgument(f"environment entry {bad[0]!r} is not NAME=VALUE")
    process["env"] = run_options.merged_environment(
        [default_spec.DEFAULT_PATH, f"HOSTNAME={hostname(options, found)}"],
        ["TERM=xterm"] if options.terminal else [],
        [f"HOME={found.user.home}"],
        (entry for entry in image.env if entry not in ignored),
        options.env,
    )
    process["args"] = list(args)
    process["cwd"] = working_directory(options.working_dir or image.working_dir)
    process["user"] = user_document(found.user)
    if options.terminal:
        process["terminal"] = True
        set_console_size(process, options.console_size)
    process["capabilities"] = capability_document(options, found)
    limits = run_options.rlimits(options.ulimits)
    if limits:
        process["rlimits"] = limits
    return process


def user_document(user: User) -> dict[str, Any]:
    """Return the OCI form of a user."""
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}


def set_console_size(process: dict[str, Any], size: tuple[int, int]) -> None:
    """Give a process's terminal its size from the start; (0, 0) is not known."""
    if all(size):
        process["consoleSize"] = {"width": size[0], "height": size[1]}


def capability_document(options: RunOptions, found: Found) -> dict[str, list[str]]:
    """Return the capability sets: for a user other than root, what may be had is not had at once."""
    add = ("ALL", *options.capabilities_add) if options.privileged else options.capabilities_add
    chosen = run_options.capabilities(add, options.capabilities_drop, found.capabilities)
    sets = default_spec.capability_sets(chosen)
    if found.user.uid != 0 and not options.privileged:
        sets["effective"] = sets["permitted"] = []
    return sets


def _namespaces(options: RunOptions, found: Found) -> list[dict[str, Any]]:
    kinds = ["mount", "pid", "ipc", "uts"]
    if options.network != "host":
        kinds.append("network")
    if found.cgroup_namespaces and not options.privileged:
        kinds.append("cgroup")
    return [{"type": kind} for kind in kinds]


def _remap(linux: dict[str, Any], options: RunOptions, maps: Maps) -> None:
    """Give the container a user namespace. Raises InvalidArgument for what would not be what it is called."""
    if options.privileged:
        raise InvalidArgument("--privileged: root of a user namespace is not privileged; add --userns host")
    linux["namespaces"].append({"type": "user"})
    for name, items in zip(("uidMappings", "gidMappings"), maps, strict=True):
        linux[name] = [{"containerID": item.container, "hostID": item.host, "size": item.size} for item in items]


def _mounts(options: RunOptions, found: Found) -> list[dict[str, Any]]:
    """Return all mounts in order; a user's mount replaces a default one at the same place and what is below it."""
    chosen = run_options.user_mounts(options.mounts)
    taken = {str(mount["destination"]) for mount in chosen}
    defaults = [*default_spec.default_mounts(), default_spec.cgroup_mount()]
    for target, path in found.network_files.items():
        mount = _bind(path, target, "ro" if path == target or options.read_only else "rw")
        if found.maps is not None and path != target:
            mount["options"].append(MAPPED)
        defaults.append(mount)
    if options.init:
        defaults.append(_bind(found.init_program, _INIT_TARGET, "ro"))
    if options.privileged:
        for mount in defaults:
            if mount["destination"] in ("/sys", "/sys/fs/cgroup"):
                mount["options"] = [option for option in mount["options"] if option != "ro"]
    kept = [mount for mount in defaults if not _below(str(mount["destination"]), taken)]
    return kept + chosen


def _below(path: str, places: set[str]) -> bool:
    """Tell whether `path` is one of `places` or inside one."""
    return any(path == place or path.startswith(place + "/") for place in places)


def _bind(source: str, target: str, access: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", access]}


def _limit(resources: dict[str, Any], options: RunOptions) -> None:
    if options.memory:
        resources["memory"] = {"limit": options.memory}
    if options.nano_cpus:
        quota = options.nano_cpus * _CPU_PERIOD // 1_000_000_000
        resources["cpu"] = {"quota": max(1000, quota), "period": _CPU_PERIOD}
    if options.pids_limit:
        resources["pids"] = {"limit": options.pids_limit}


def _give_devices(linux: dict[str, Any], options: RunOptions, found: Found) -> None:
    nodes = [device.node for device in found.devices]
    if nodes:
        linux["devices"] = nodes
    if options.privileged:
        linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
    else:
        linux["resources"]["devices"] += [device.rule for device in found.devices]


def security_options(options: RunOptions, name: str) -> list[str]:
    """Return the values that `--security-opt` gives to a name, in order."""
    return [value for one, value in map(_security_option, options.security_options) if one == name]


def _security_option(option: str) -> tuple[str, str]:
    """Return name and value, as in name=value, name:value or name."""
    name, _, value = option.replace(":", "=", 1).partition("=") if "=" not in option else option.partition("=")
    return name, value


def _confine(spec: dict[str, Any], options: RunOptions, found: Found) -> None:
    """Set seccomp, LSM profiles and hidden paths as `--privileged` and `--security-opt` say."""
    linux, process = spec["linux"], spec["process"]
    seccomp: str | None = "unconfined" if options.privileged else None
    profile = "" if options.privileged else found.apparmor
    hide = not options.privileged
    for option in options.security_options:
        match _security_option(option):
            case "seccomp", value:
                seccomp = value
            case "no-new-privileges", ("" | "true"):
                process["noNewPrivileges"] = True
            case "no-new-privileges", "false":
                process["noNewPrivileges"] = False
            case "apparmor", "unconfined":
                profile = ""
            case "apparmor", value if value:
                profile = value
            case "label", "disable":
                pass
            case "systempaths", "unconfined":
                hide = False
            case _:
                raise InvalidArgument(f"security option {option!r} is not known")
    if profile:
        process["apparmorProfile"] = profile
    if not hide:
        linux["maskedPaths"] = linux["readonlyPaths"] = []
    capabilities = process["capabilities"]["bounding"]
    if seccomp in (None, "builtin"):
        linux["seccomp"] = default_seccomp.default_profile(capabilities, found.machine)
    elif seccomp != "unconfined":
        linux["seccomp"] = _custom_seccomp(seccomp or "", capabilities, found.machine)


def _custom_seccomp(text: str, capabilities: Sequence[str], machine: str) -> dict[str, Any]:
    document = load_json(text.encode(), "the seccomp profile")
    if not isinstance(document, dict) or "defaultAction" not in document:
        raise InvalidArgument("the seccomp profile has no defaultAction")
    return default_seccomp.from_docker_profile(document, capabilities, machine)
