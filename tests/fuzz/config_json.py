"""config.json: whatever the bytes, a spec that all of the runtime can work with, or an OciError that names a field."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any, Final

from pyctr_shim.oci import (
    console,
    mount_options,
    mounts,
    rdt,
    rlimits,
    rootfs,
    scheduling,
    seccomp,
    sysctl,
    user,
    validate,
)
from pyctr_shim.oci.cgroups import cgroup_path, dbus, device_filter, owner_of, systemd, v1, v2
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.identity import Identity
from pyctr_shim.oci.state import State, Status
from pyctr_sys.steps import Steps
from support.hostile_documents import full_spec, mutate_json

NAMES: Final = (
    "config.json", "ociVersion", "root", "mounts", "process", "hostname", "domainname", "hooks", "annotations", "linux",
    "solaris", "windows", "vm", "zos", "freebsd",
)  # fmt: skip
_NAMED: Final = re.compile(rf"({'|'.join(map(re.escape, NAMES))})\b.*?: \S", re.DOTALL)  # names may have colons
_ALL: Final = (1 << 41) - 1
_RESCTRL: Final = "1 0 0:1 / /sys/fs/resctrl rw - resctrl none rw\n"

Spec = dict[str, Any]
seeds: Final = [json.dumps(full_spec()).encode()]
mutate = mutate_json


def check(data: bytes) -> None:
    """Fail if a config.json of these bytes is neither refused by the name of a field nor of use."""
    try:
        spec = validate.parse_spec(data, "config.json")
    except OciError as error:
        assert _NAMED.match(str(error)), error
        return
    for consumer in CONSUMERS:
        try:
            consumer(spec)
        except OciError as error:
            assert len(str(error)) > 8, error


def _process(spec: Spec) -> None:
    process = spec.get("process") or {"args": [], "cwd": "/"}
    environment = user.environment(process)
    user.home_in(b"", (process.get("user") or {}).get("uid") or 0)
    console.size_of(process)
    Identity(process, None, _ALL, _ALL)
    steps = Steps()
    rlimits.add_to(steps, process.get("rlimits") or ())
    steps.strings(process["args"])
    steps.strings([f"{name}={value}" for name, value in environment.items()])
    os.fsencode(process["cwd"])


def _affinity(spec: Spec) -> None:
    for numbers in ((spec.get("process") or {}).get("execCPUAffinity") or {}).values():
        if isinstance(numbers, str):
            assert len(scheduling.parse_numbers(numbers)) <= 1 << 16


def _mounts(spec: Spec) -> None:
    rootfs.propagation_flag(spec["linux"].get("rootfsPropagation") or "")
    os.fsencode(spec["root"]["path"])
    for item in spec.get("mounts") or ():
        mount_options.parse(item.get("options") or ())
        assert os.fsencode(mounts.clean(item["destination"])).startswith(b"/")
        os.fsencode(item.get("source") or "")


def _cgroup(spec: Spec) -> None:
    owner_of(spec)
    given = spec["linux"].get("cgroupsPath") or ""
    path = cgroup_path(given, "c1", of_systemd=given.count(":") > 1)
    assert not {"..", ""} & set(path.split("/")[1:])


def limits_v1(spec: Spec) -> None:
    """Plan the writes to version 1's files."""
    for _, _, name, text in v1.plain_limits(spec["linux"].get("resources") or {}):
        assert "/" not in name
        text.encode()


def limits_v2(spec: Spec) -> None:
    """Plan the writes to version 2's files."""
    for _, name, text in v2.limits(spec["linux"].get("resources") or {}):
        (name + text).encode()


def _limits_systemd(spec: Spec) -> None:
    for is_v2 in (False, True):
        properties = systemd.properties_of(spec["linux"].get("resources") or {}, is_v2=is_v2)
        dbus.pack_message(dbus.CALL, 1, {}, "sba(sv)", ("unit", True, properties))


def _devices(spec: Spec) -> None:
    rules = device_filter.with_defaults((spec["linux"].get("resources") or {}).get("devices") or ())
    device_filter.bpf_program(rules)
    for rule in rules:
        rule.v1_line().encode()
    for device in spec["linux"].get("devices") or ():
        os.makedev(device.get("major") or 0, device.get("minor") or 0)


def _lasting(spec: Spec) -> None:
    scheduling.add_lasting(Steps(), spec["linux"])


def _rdt(spec: Spec) -> None:
    with tempfile.NamedTemporaryFile("w") as mountinfo:
        mountinfo.write(_RESCTRL)
        mountinfo.flush()
        groups = rdt.plan(spec["linux"].get("intelRdt"), "c1", mountinfo.name)
    for directory in groups.joined if groups else ():
        assert directory.startswith("/sys/fs/resctrl")
        assert "/../" not in f"{directory}/"


def _sysctl(spec: Spec) -> None:
    for name, value in (spec["linux"].get("sysctl") or {}).items():
        assert not {"..", ""} & set(sysctl.path_of(name).split("/"))
        value.encode()


def _state(spec: Spec) -> None:
    state = State("c1", "/bundle", "/c1", 0, annotations=spec.get("annotations") or {}, hooks=spec.get("hooks") or {})
    json.loads(state.document(Status.CREATING))


def _seccomp(spec: Spec) -> None:
    profile = spec["linux"].get("seccomp")
    if profile:
        seccomp.flags_of(profile.get("flags"))


CONSUMERS: Final[tuple[Callable[[Spec], None], ...]] = (
    _process, _affinity, _mounts, _cgroup, limits_v1, limits_v2, _limits_systemd, _devices, _lasting, _rdt, _sysctl,
    _state, _seccomp,
)  # fmt: skip
