"""Refusing a bad config.json early, by the name of the field.

Three kinds of fields: those below are checked for their types and done; those marked `Refused` are
in the specification but not done here, and asking for them is an error; anything else is unknown to
the specification too, which says that it must be ignored.

Source: OCI runtime specification 1.3, config.md and config-linux.md.
"""

import json
import os
from collections.abc import Mapping, Set
from typing import Any, Final

from pyctr_shim.oci import rlimits, scheduling, sysctl
from pyctr_shim.oci.checks import (
    BOOL,
    INT,
    Refused,
    Wrong,
    a_list,
    a_map,
    absolute,
    an_id,
    an_object,
    any_text,
    between,
    one_of,
    run,
    text,
    texts,
)
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.hooks import KINDS as HOOK_KINDS
from pyctr_shim.oci.namespaces import KINDS as NAMESPACE_KINDS

SPEC_BYTES: Final = 16 << 20
_LARGEST_MAPS: Final = 340  # the kernel's own limit since 4.15
_INTERFACE_BYTES: Final = 16


def load_spec(path: str) -> dict[str, Any]:
    """Read and check a config.json. Raises OciError naming the file or the field."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, min(os.fstat(fd).st_size, SPEC_BYTES) + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}", error.errno or 0) from None
    return parse_spec(data, path)


def parse_spec(data: bytes, path: str) -> dict[str, Any]:
    """Parse and check what is in a config.json. Raises OciError naming the file or the field."""
    spec = _parse(data, path)
    check_spec(spec)
    return spec


def load_process(data: bytes) -> dict[str, Any]:
    """Parse and check the process document of an exec. Raises OciError."""
    process = _parse(data, "process")
    run(_PROCESS, process, "process")
    _require(process, "process", ("args", "cwd"))
    return process


def load_resources(data: bytes) -> dict[str, Any]:
    """Parse and check a LinuxResources document. Raises OciError."""
    resources = _parse(data, "resources")
    run(_RESOURCES, resources, "linux.resources")
    return resources


def _parse(data: bytes, name: str) -> dict[str, Any]:
    if len(data) > SPEC_BYTES:
        raise OciError(f"{name}: more than {SPEC_BYTES} bytes")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OciError(f"{name}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise OciError(f"{name}: not a JSON object")
    return document


def check_spec(spec: Mapping[str, Any]) -> None:
    """Raise OciError for the first field that is wrong or not done here."""
    run(_SPEC, spec, "")
    if not (spec.get("ociVersion") or "").startswith("1."):
        raise OciError(f"ociVersion: {spec.get('ociVersion')!r} is not 1.x")
    _require(spec, "", ("root", "linux"))
    if spec.get("process") is not None:  # the specification wants one at start only
        _require(spec["process"], "process", ("args", "cwd"))
    _require(spec["root"], "root", ("path",))
    linux = spec["linux"]
    kinds = [namespace.get("type") for namespace in linux.get("namespaces") or ()]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise OciError(f"linux.namespaces: {twice} is there twice")
    new = {item["type"] for item in linux.get("namespaces") or () if not item.get("path")}
    if "mount" not in new:
        _check_shared_mounts(spec, kinds, new)
    if spec.get("hostname") and "uts" not in kinds:
        raise OciError("hostname: needs a UTS namespace of its own")
    if spec.get("domainname") and "uts" not in kinds:
        raise OciError("domainname: needs a UTS namespace of its own")
    maps = linux.get("uidMappings") or linux.get("gidMappings")
    if maps and "user" not in new:
        raise OciError("linux.uidMappings: needs a new user namespace")
    if "user" in new and not (linux.get("uidMappings") and linux.get("gidMappings")):
        raise OciError("linux.uidMappings, linux.gidMappings: a new user namespace needs both")
    if linux.get("timeOffsets") and "time" not in new:
        raise OciError("linux.timeOffsets: needs a new time namespace")
    if linux.get("netDevices") and "network" not in kinds:
        raise OciError("linux.netDevices: needs a network namespace of its own")
    for item in spec.get("mounts") or ():
        _check_id_maps(item, has_user_namespace="user" in kinds)
    for name in linux.get("sysctl") or ():
        _check_sysctl(name, kinds)


def _check_shared_mounts(spec: Mapping[str, Any], kinds: list[str], new: Set[str]) -> None:
    """Allow only what can be made in one mount namespace and taken along into another."""
    if "user" in new:
        raise OciError("linux.namespaces: a new user namespace needs a new mount namespace")
    if "user" in kinds and "mount" not in kinds:
        raise OciError("linux.namespaces: a user namespace needs a mount namespace, a new one or its own")
    propagation = [spec["linux"].get("rootfsPropagation") or ""]
    propagation += [option for item in spec.get("mounts") or () for option in item.get("options") or ()]
    if unbindable := {"unbindable", "runbindable"}.intersection(propagation):
        raise OciError(f"linux.namespaces: {unbindable.pop()} needs a new mount namespace")


def _check_id_maps(item: Mapping[str, Any], *, has_user_namespace: bool) -> None:
    where = f"mounts: {item['destination']}"
    given = [bool(item.get(field)) for field in ("uidMappings", "gidMappings")]
    if given[0] != given[1]:
        raise OciError(f"{where}: uidMappings and gidMappings go together")
    asked = {"idmap", "ridmap"} & set(item.get("options") or ())
    if asked and not given[0] and not has_user_namespace:
        raise OciError(
            f"{where}: {asked.pop()} needs uidMappings and gidMappings, or a user namespace to take them from"
        )


def _check_sysctl(name: str, kinds: list[str]) -> None:
    """Allow only sysctls that belong to a namespace that the container does not share with the host."""
    parts = sysctl.path_of(name).split("/")
    if {"", ".", ".."} & set(parts):
        raise OciError(f"linux.sysctl: {name!r} is not the name of a sysctl")
    if parts[0] == "net":
        kind = "network"
    elif name.startswith("fs.mqueue.") or name in _IPC_SYSCTLS:
        kind = "ipc"
    elif name in {"kernel.domainname", "kernel.hostname"}:
        kind = "uts"
    else:
        raise OciError(f"linux.sysctl: {name!r} is not in a separate kernel namespace")
    if kind not in kinds:
        raise OciError(f"linux.sysctl: {name!r} is not allowed in the host's {kind} namespace")


_IPC_SYSCTLS: Final = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)


def _require(value: Mapping[str, Any], path: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not value.get(name):
            raise OciError(f"{path + '.' if path else ''}{name}: is required")


def _rlimit_type(value: Any) -> None:
    text(value)
    if not rlimits.known(value):
        raise Wrong(f"unknown limit {value!r}")


def _each_once(value: Any) -> None:
    types = [limit["type"] for limit in value]
    if twice := next((kind for kind in types if types.count(kind) > 1), None):
        raise Wrong(f"{twice} is there twice")


def _rlimits(value: Any) -> None:
    _RLIMITS(value)
    _each_once(value)


def _device(value: Any) -> None:
    _DEVICE(value)
    if value["type"] != "p" and (value.get("major") is None or value.get("minor") is None):
        raise Wrong("needs major and minor")


def _some_names(value: Any) -> None:
    texts(value)
    if not value:
        raise Wrong("must not be empty")


def _device_name(value: Any) -> None:
    text(value)
    if value in {".", ".."} or not 0 < len(os.fsencode(value)) < _INTERFACE_BYTES or set(value) & set("/: \t\n"):
        raise Wrong(f"{value!r} is not the name of a network device")


def _one_line(value: Any) -> None:
    text(value)
    if "\n" in value:
        raise Wrong("is more than one line")


# -- the tables

_UNSIGNED = between(0, (1 << 64) - 1)
_IDS = an_object(("containerID", "hostID", "size"), containerID=an_id, hostID=an_id, size=between(1, 1 << 32))
_RLIMITS = a_list(an_object(("type", "soft", "hard"), type=_rlimit_type, soft=_UNSIGNED, hard=_UNSIGNED))
_MAPS = a_list(_IDS, _LARGEST_MAPS)
_BOX = an_object(height=between(0, 65535), width=between(0, 65535))
_SIGNED = between(-(1 << 63), (1 << 63) - 1)
_RULE_NUMBER = between(-1, (1 << 32) - 1)  # of a device cgroup, where -1 is any

_PROCESS = an_object(
    terminal=BOOL,
    consoleSize=_BOX,
    user=an_object(
        uid=an_id,
        gid=an_id,
        umask=between(0, 0o777),
        additionalGids=a_list(an_id),
        username=Refused("is for Windows"),
    ),
    args=texts,
    commandLine=Refused("is for Windows"),
    env=texts,
    cwd=absolute,
    capabilities=an_object(**dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), texts)),
    rlimits=_rlimits,
    noNewPrivileges=BOOL,
    apparmorProfile=text,
    selinuxLabel=text,
    oomScoreAdj=between(-1000, 1000),
    scheduler=an_object(
        ("policy",),
        policy=one_of(
            "SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"
        ),
        nice=between(-20, 19),
        priority=between(0, 99),
        flags=texts,
        runtime=_UNSIGNED,
        deadline=_UNSIGNED,
        period=_UNSIGNED,
    ),
    ioPriority=an_object(
        ("class",),
        **{"class": one_of("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")},
        priority=between(0, 7),
    ),
    execCPUAffinity=an_object(initial=text, final=text),
)


def _no_limit(value: Any) -> None:
    INT(value)
    if value not in {0, -1}:
        raise Wrong("the kernel has dropped this limit")


_DEVICE_RATE = a_list(an_object(("major", "minor", "rate"), major=INT, minor=INT, rate=_UNSIGNED))
_RESOURCES = an_object(
    devices=a_list(
        an_object(
            ("allow",),
            allow=BOOL,
            type=one_of("a", "c", "b", "u", ""),
            major=_RULE_NUMBER,
            minor=_RULE_NUMBER,
            access=text,
        )
    ),
    memory=an_object(
        limit=_SIGNED,
        reservation=_SIGNED,
        swap=_SIGNED,
        kernel=_no_limit,
        kernelTCP=_SIGNED,
        swappiness=between(0, 100),
        disableOOMKiller=BOOL,
        useHierarchy=BOOL,
        checkBeforeUpdate=BOOL,
    ),
    cpu=an_object(
        shares=_UNSIGNED,
        quota=_SIGNED,
        burst=_UNSIGNED,
        period=_UNSIGNED,
        realtimeRuntime=_SIGNED,
        realtimePeriod=_UNSIGNED,
        cpus=text,
        mems=text,
        idle=between(0, 1),
    ),
    pids=an_object(limit=_SIGNED),
    blockIO=an_object(
        weight=between(0, 1000),
        leafWeight=Refused("went with the CFQ scheduler"),
        weightDevice=a_list(
            an_object(
                ("major", "minor", "weight"),
                major=INT,
                minor=INT,
                weight=between(0, 1000),
                leafWeight=Refused("went with the CFQ scheduler"),
            )
        ),
        throttleReadBpsDevice=_DEVICE_RATE,
        throttleWriteBpsDevice=_DEVICE_RATE,
        throttleReadIOPSDevice=_DEVICE_RATE,
        throttleWriteIOPSDevice=_DEVICE_RATE,
    ),
    hugepageLimits=a_list(an_object(("pageSize", "limit"), pageSize=text, limit=_UNSIGNED)),
    network=an_object(
        classID=between(0, (1 << 32) - 1),
        priorities=a_list(an_object(("name", "priority"), name=text, priority=between(0, (1 << 32) - 1))),
    ),
    rdma=a_map(an_object(hcaHandles=_UNSIGNED, hcaObjects=_UNSIGNED)),
    unified=a_map(text),
)

_SECCOMP = an_object(
    ("defaultAction",),
    defaultAction=text,
    defaultErrnoRet=between(0, 4095),
    architectures=texts,
    flags=texts,
    listenerPath=text,
    listenerMetadata=text,
    syscalls=a_list(
        an_object(
            ("names", "action"),
            names=_some_names,
            action=text,
            errnoRet=between(0, 4095),
            args=a_list(
                an_object(("index", "value", "op"), index=between(0, 5), value=_UNSIGNED, valueTwo=_UNSIGNED, op=text)
            ),
        )
    ),
)

_DEVICE = an_object(
    ("type", "path"),
    type=one_of("c", "b", "u", "p"),
    path=absolute,
    major=between(0, (1 << 12) - 1),  # Linux's dev_t
    minor=between(0, (1 << 20) - 1),
    fileMode=between(0, 0o177777),
    uid=an_id,
    gid=an_id,
)

_LINUX = an_object(
    uidMappings=_MAPS,
    gidMappings=_MAPS,
    sysctl=a_map(text),
    resources=_RESOURCES,
    cgroupsPath=text,
    namespaces=a_list(an_object(("type",), type=one_of(*NAMESPACE_KINDS), path=text)),
    devices=a_list(_device),
    netDevices=a_map(an_object(name=_device_name)),
    seccomp=_SECCOMP,
    rootfsPropagation=one_of(
        "", "private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable"
    ),
    maskedPaths=a_list(absolute),
    readonlyPaths=a_list(absolute),
    mountLabel=text,
    intelRdt=an_object(
        closID=text,
        schemata=a_list(_one_line),
        l3CacheSchema=text,
        memBwSchema=text,
        enableMonitoring=BOOL,
        enableCMT=Refused("has become enableMonitoring"),
        enableMBM=Refused("has become enableMonitoring"),
    ),
    memoryPolicy=an_object(
        ("mode",), mode=one_of(*scheduling.MEMORY_MODES), nodes=text, flags=a_list(one_of(*scheduling.MEMORY_FLAGS))
    ),
    personality=an_object(("domain",), domain=one_of("LINUX", "LINUX32"), flags=Refused()),
    timeOffsets=a_map(an_object(secs=_SIGNED, nanosecs=between(0, 999_999_999))),
)

_HOOK = an_object(("path",), path=absolute, args=texts, env=texts, timeout=between(1, 1 << 31))
_SPEC = an_object(
    ociVersion=text,
    root=an_object(path=text, readonly=BOOL),
    mounts=a_list(
        an_object(
            ("destination",),
            destination=text,
            type=text,
            source=text,
            options=texts,
            uidMappings=_MAPS,
            gidMappings=_MAPS,
        )
    ),
    process=_PROCESS,
    hostname=text,
    domainname=text,
    hooks=an_object(**{kind: a_list(_HOOK) for kind in HOOK_KINDS}),
    annotations=a_map(any_text),
    linux=_LINUX,
    solaris=Refused("is for another system"),
    windows=Refused("is for another system"),
    vm=Refused("is for another system"),
    zos=Refused("is for another system"),
    freebsd=Refused("is for another system"),
)
