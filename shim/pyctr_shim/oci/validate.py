"""Refusing a bad config.json early, by the name of the field.

Three kinds of fields: those below are checked for their types and done; those marked `_Refused` are
in the specification but not done here, and asking for them is an error; anything else is unknown to
the specification too, which says that it must be ignored.

Source: OCI runtime specification 1.2, config.md and config-linux.md.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci import mount_options, rlimits, sysctl
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.hooks import KINDS as HOOK_KINDS
from pyctr_shim.oci.namespaces import KINDS as NAMESPACE_KINDS

SPEC_BYTES: Final = 16 << 20
_LARGEST_ID: Final = (1 << 32) - 2  # (uid_t)-1 means "leave it"
_LARGEST_MAPS: Final = 340  # the kernel's own limit since 4.15

Check = Callable[[Any], None]


def load_spec(path: str) -> dict[str, Any]:
    """Read and check a config.json. Raises OciError naming the file or the field."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OciError(f"{path}: {error.strerror}", error.errno or 0) from None
    try:
        data = os.read(fd, min(os.fstat(fd).st_size, SPEC_BYTES) + 1)
    finally:
        os.close(fd)
    spec = _parse(data, path)
    check_spec(spec)
    return spec


def load_process(data: bytes) -> dict[str, Any]:
    """Parse and check the process document of an exec. Raises OciError."""
    process = _parse(data, "process")
    _run(_PROCESS, process, "process")
    _require(process, "process", ("args", "cwd"))
    return process


def load_resources(data: bytes) -> dict[str, Any]:
    """Parse and check a LinuxResources document. Raises OciError."""
    resources = _parse(data, "resources")
    _run(_RESOURCES, resources, "linux.resources")
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
    _run(_SPEC, spec, "")
    if not (spec.get("ociVersion") or "").startswith("1."):
        raise OciError(f"ociVersion: {spec.get('ociVersion')!r} is not 1.x")
    _require(spec, "", ("root", "linux", "process"))
    process = spec["process"]
    _require(process, "process", ("args", "cwd"))
    _require(spec["root"], "root", ("path",))
    linux = spec["linux"]
    kinds = [namespace.get("type") for namespace in linux.get("namespaces") or ()]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise OciError(f"linux.namespaces: {twice} is there twice")
    new = {item["type"] for item in linux.get("namespaces") or () if not item.get("path")}
    if "mount" not in new:
        raise OciError("linux.namespaces: a new mount namespace is required")
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
    for name in linux.get("sysctl") or ():
        _check_sysctl(name, kinds)


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


# -- the building blocks of the tables below: each checks a value; where it lies is only put together for an error


class _Wrong(Exception):
    """A value that is wrong; its path is completed by those who called."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path: list[str] = []

    def located(self, root: str) -> OciError:
        """Return the error to show, with the whole path below `root`."""
        path = root
        for step in reversed(self.path):
            path += step if step.startswith("[") or not path else f".{step}"
        return OciError(f"{path or 'config.json'}: {self}")


def _run(check: Check, value: Any, root: str) -> None:
    try:
        check(value)
    except _Wrong as wrong:
        raise wrong.located(root) from None


def _type(kind: type, words: str) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Wrong(f"must be {words}")

    return check


_BOOL = _type(bool, "true or false")
_INT = _type(int, "a whole number")
_ANY_TEXT = _type(str, "a string")


def _text(value: Any) -> None:
    _ANY_TEXT(value)
    if "\0" in value:
        raise _Wrong("contains a NUL byte")


def _absolute(value: Any) -> None:
    _text(value)
    if not value.startswith("/"):
        raise _Wrong(f"{value!r} is not an absolute path")


def _id(value: Any) -> None:
    _INT(value)
    if not 0 <= value <= _LARGEST_ID:
        raise _Wrong(f"{value} is not a uid or gid")


def _between(least: int, most: int) -> Check:
    def check(value: Any) -> None:
        _INT(value)
        if not least <= value <= most:
            raise _Wrong(f"{value} is not between {least} and {most}")

    return check


def _one_of(*choices: str) -> Check:
    allowed = frozenset(choices)

    def check(value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise _Wrong(f"{value!r} is not one of {', '.join(choices)}")

    return check


def _list(item: Check, most: int = 1 << 20) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise _Wrong("must be a list")
        if len(value) > most:
            raise _Wrong(f"more than {most} entries")
        for number, entry in enumerate(value):
            try:
                item(entry)
            except _Wrong as wrong:
                wrong.path.append(f"[{number}]")
                raise

    return check


def _map(item: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _Wrong("must be an object")
        for key, entry in value.items():
            try:
                item(entry)
            except _Wrong as wrong:
                wrong.path.append(key)
                raise

    return check


def _object(required: tuple[str, ...] = (), /, **fields: Check) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _Wrong("must be an object")
        for key in required:
            if value.get(key) is None:
                wrong = _Wrong("is required")
                wrong.path.append(key)
                raise wrong
        for key, entry in value.items():
            if entry is not None and (field := fields.get(key)) is not None:
                try:
                    field(entry)
                except _Wrong as wrong:
                    wrong.path.append(key)
                    raise

    return check


@dataclass(frozen=True, slots=True)
class _Refused:
    """A field of the specification that is not done here; empty and false values ask for nothing."""

    why: str = "is not supported"

    def __call__(self, value: Any) -> None:
        if value not in (None, False, 0, "", [], {}):
            raise _Wrong(self.why)


def _mount_option(value: Any) -> None:
    _text(value)
    if value in mount_options.REFUSED:
        raise _Wrong(f"{value!r} is not supported")


def _rlimit_type(value: Any) -> None:
    _text(value)
    if not rlimits.known(value):
        raise _Wrong(f"unknown limit {value!r}")


# -- the tables

_IDS = _object(("containerID", "hostID", "size"), containerID=_id, hostID=_id, size=_between(1, 1 << 32))
_MAPS = _list(_IDS, _LARGEST_MAPS)
_NAMES = _list(_text)
_BOX = _object(height=_between(0, 65535), width=_between(0, 65535))
_UNSIGNED = _between(0, (1 << 64) - 1)
_SIGNED = _between(-(1 << 63), (1 << 63) - 1)
_DEVICE_NUMBER = _between(-1, (1 << 32) - 1)

_PROCESS = _object(
    terminal=_BOOL,
    consoleSize=_BOX,
    user=_object(uid=_id, gid=_id, umask=_between(0, 0o777), additionalGids=_list(_id)),
    args=_NAMES,
    commandLine=_Refused("is for Windows"),
    env=_NAMES,
    cwd=_absolute,
    capabilities=_object(**dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), _NAMES)),
    rlimits=_list(_object(("type", "soft", "hard"), type=_rlimit_type, soft=_UNSIGNED, hard=_UNSIGNED)),
    noNewPrivileges=_BOOL,
    apparmorProfile=_text,
    selinuxLabel=_Refused(),
    oomScoreAdj=_between(-1000, 1000),
    scheduler=_object(
        ("policy",),
        policy=_one_of(
            "SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"
        ),
        nice=_between(-20, 19),
        priority=_between(0, 99),
        flags=_NAMES,
        runtime=_UNSIGNED,
        deadline=_UNSIGNED,
        period=_UNSIGNED,
    ),
    ioPriority=_object(
        **{"class": _one_of("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")}, priority=_between(0, 7)
    ),
    execCPUAffinity=_object(initial=_text, final=_text),
)

_DEVICE_RATE = _list(_object(("major", "minor", "rate"), major=_INT, minor=_INT, rate=_UNSIGNED))
_RESOURCES = _object(
    devices=_list(
        _object(
            ("allow",),
            allow=_BOOL,
            type=_one_of("a", "c", "b", "u", ""),
            major=_DEVICE_NUMBER,
            minor=_DEVICE_NUMBER,
            access=_text,
        )
    ),
    memory=_object(
        limit=_SIGNED,
        reservation=_SIGNED,
        swap=_SIGNED,
        kernel=_Refused("the kernel has dropped this limit"),
        kernelTCP=_SIGNED,
        swappiness=_between(0, 100),
        disableOOMKiller=_BOOL,
        useHierarchy=_BOOL,
        checkBeforeUpdate=_BOOL,
    ),
    cpu=_object(
        shares=_UNSIGNED,
        quota=_SIGNED,
        burst=_UNSIGNED,
        period=_UNSIGNED,
        realtimeRuntime=_SIGNED,
        realtimePeriod=_UNSIGNED,
        cpus=_text,
        mems=_text,
        idle=_between(0, 1),
    ),
    pids=_object(limit=_SIGNED),
    blockIO=_object(
        weight=_between(0, 1000),
        leafWeight=_Refused("went with the CFQ scheduler"),
        weightDevice=_list(
            _object(
                ("major", "minor"),
                major=_INT,
                minor=_INT,
                weight=_between(0, 1000),
                leafWeight=_Refused("went with the CFQ scheduler"),
            )
        ),
        throttleReadBpsDevice=_DEVICE_RATE,
        throttleWriteBpsDevice=_DEVICE_RATE,
        throttleReadIOPSDevice=_DEVICE_RATE,
        throttleWriteIOPSDevice=_DEVICE_RATE,
    ),
    hugepageLimits=_list(_object(("pageSize", "limit"), pageSize=_text, limit=_UNSIGNED)),
    network=_object(
        classID=_between(0, (1 << 32) - 1),
        priorities=_list(_object(("name", "priority"), name=_text, priority=_between(0, (1 << 32) - 1))),
    ),
    rdma=_map(_object(hcaHandles=_UNSIGNED, hcaObjects=_UNSIGNED)),
    unified=_map(_text),
)

_SECCOMP = _object(
    ("defaultAction",),
    defaultAction=_text,
    defaultErrnoRet=_between(0, 4095),
    architectures=_NAMES,
    flags=_NAMES,
    listenerPath=_Refused(),
    listenerMetadata=_Refused(),
    syscalls=_list(
        _object(
            ("names", "action"),
            names=_NAMES,
            action=_text,
            errnoRet=_between(0, 4095),
            args=_list(
                _object(("index", "value", "op"), index=_between(0, 5), value=_UNSIGNED, valueTwo=_UNSIGNED, op=_text)
            ),
        )
    ),
)

_LINUX = _object(
    uidMappings=_MAPS,
    gidMappings=_MAPS,
    sysctl=_map(_text),
    resources=_RESOURCES,
    cgroupsPath=_text,
    namespaces=_list(_object(("type",), type=_one_of(*NAMESPACE_KINDS), path=_text)),
    devices=_list(
        _object(
            ("type", "path"),
            type=_one_of("c", "b", "u", "p"),
            path=_absolute,
            major=_DEVICE_NUMBER,
            minor=_DEVICE_NUMBER,
            fileMode=_between(0, 0o177777),
            uid=_id,
            gid=_id,
        )
    ),
    netDevices=_Refused(),
    seccomp=_SECCOMP,
    rootfsPropagation=_one_of(
        "", "private", "shared", "slave", "unbindable", "rprivate", "rshared", "rslave", "runbindable"
    ),
    maskedPaths=_list(_absolute),
    readonlyPaths=_list(_absolute),
    mountLabel=_Refused(),
    intelRdt=_Refused(),
    memoryPolicy=_Refused(),
    personality=_object(("domain",), domain=_one_of("LINUX", "LINUX32"), flags=_Refused()),
    timeOffsets=_map(_object(secs=_SIGNED, nanosecs=_between(0, 999_999_999))),
)

_HOOK = _object(("path",), path=_absolute, args=_NAMES, env=_NAMES, timeout=_between(1, 1 << 31))
_SPEC = _object(
    ociVersion=_text,
    root=_object(path=_text, readonly=_BOOL),
    mounts=_list(
        _object(
            ("destination",),
            destination=_text,
            type=_text,
            source=_text,
            options=_list(_mount_option),
            uidMappings=_Refused(),
            gidMappings=_Refused(),
        )
    ),
    process=_PROCESS,
    hostname=_text,
    domainname=_text,
    hooks=_object(**{kind: _list(_HOOK) for kind in HOOK_KINDS}),
    annotations=_map(_ANY_TEXT),
    linux=_LINUX,
    solaris=_Refused("is for another system"),
    windows=_Refused("is for another system"),
    vm=_Refused("is for another system"),
    zos=_Refused("is for another system"),
    freebsd=_Refused("is for another system"),
)
