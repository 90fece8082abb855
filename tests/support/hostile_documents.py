"""JSON that is not meant well: a spec in which every field is there, and what to put in their places."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any, Final

from support.oci_bundle import plain_spec

Path = tuple[str | int, ...]


def _nested(levels: int, *, objects: bool) -> Any:
    made: Any = None
    for _ in range(levels):
        made = {"a": made} if objects else [made]
    return made


VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 7, 65536, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63),
    -(2**63) - 1, 10**400, 0.5, 1e308, float("nan"),
    "", "x", "/", "..", "/../..", "a\0b", "\ud800", "é\U0001f600", "\n", " ", "-", ":", "a:b:c", "0-", "0-4294967295",
    "0-9," * 5000, "9" * 5000, "%s%n", "*", "/" * 5000, "x" * 70_000, "/" + "y" * 300, "SCMP_ACT_NOTIFY", "pid",
    [], {}, [None], [[]], [{}], [""], ["x"], ["x", "x"], [0], ["a\0b"], ["\ud800"], {"": ""}, {"a": None}, {"\0": 1},
    {"\ud800": "x"}, {"a": {}}, {"a": "x"}, _nested(60, objects=False), _nested(60, objects=True),
)  # fmt: skip


def full_spec() -> dict[str, Any]:
    """Return a spec in which every field that is done here asks for something harmless."""
    spec = plain_spec("true")
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    rate = [{"major": 8, "minor": 0, "rate": 1_000_000}]
    hook = {"path": "/bin/true", "args": ["true", "x"], "env": ["A=b"], "timeout": 5}
    spec["mounts"] += [
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1777", "tmpcopyup"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "rro", "rprivate"]},
        {"destination": "/srv", "source": "/srv", "options": ["bind"], "uidMappings": maps, "gidMappings": maps},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]
    spec["process"] |= {
        "terminal": False,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
        "env": ["PATH=/bin", "HOME=/"],
        "capabilities": {
            name: ["CAP_KILL", "CAP_CHOWN"] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, {"type": "RLIMIT_CPU", "soft": 50, "hard": 60}],
        "noNewPrivileges": True,
        "apparmorProfile": "",
        "selinuxLabel": "",
        "oomScoreAdj": 100,
        "scheduler": {"policy": "SCHED_BATCH", "nice": 5, "priority": 0, "flags": [], "runtime": 0},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    }
    spec |= {
        "hostname": "box",
        "domainname": "example.org",
        "hooks": {"createContainer": [hook], "poststop": [hook, hook]},
        "annotations": {"org.example.key": "value"},
    }
    spec["root"]["readonly"] = True
    spec["linux"] |= {
        "namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")],
        "uidMappings": maps,
        "gidMappings": maps,
        "timeOffsets": {"monotonic": {"secs": 10, "nanosecs": 5}},
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"},
        "cgroupsPath": "/tests/c1",
        "devices": [
            {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0},
            {"type": "p", "path": "/dev/pipe"},
        ],
        "netDevices": {"eth9": {"name": "inside0"}},
        "rootfsPropagation": "rslave",
        "maskedPaths": ["/proc/kcore", "/sys/firmware"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "",
        "personality": {"domain": "LINUX"},
        "memoryPolicy": {"mode": "MPOL_DEFAULT", "nodes": "", "flags": []},
        "intelRdt": {"closID": "guests", "schemata": ["MB:0=50"], "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/run/agent.sock",
            "listenerMetadata": "x",
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {
                    "names": ["personality"], "action": "SCMP_ACT_ALLOW", "errnoRet": None,
                    "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
                },
            ],
        },
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": 10, "minor": -1, "access": "rw"},
            ],
            "memory": {
                "limit": 1 << 28, "reservation": 1 << 27, "swap": 1 << 29, "kernel": 0, "kernelTCP": -1,
                "swappiness": 60, "disableOOMKiller": False, "useHierarchy": True, "checkBeforeUpdate": True,
            },
            "cpu": {
                "shares": 512, "quota": 50_000, "burst": 0, "period": 100_000, "realtimeRuntime": 0,
                "realtimePeriod": 0, "cpus": "0", "mems": "0", "idle": 0,
            },
            "pids": {"limit": 100},
            "blockIO": {
                "weight": 100, "leafWeight": 0,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 100, "leafWeight": 0}],
                "throttleReadBpsDevice": rate, "throttleWriteBpsDevice": rate,
                "throttleReadIOPSDevice": rate, "throttleWriteIOPSDevice": rate,
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 7, "priorities": [{"name": "lo", "priority": 5}]},
            "rdma": {"mlx5_0": {"hcaHandles": 1, "hcaObjects": 2}},
            "unified": {"memory.high": "max"},
        },
    }  # fmt: skip
    made: dict[str, Any] = json.loads(json.dumps(spec))  # in which no object is another's
    return made


def places(document: Any, here: Path = ()) -> Iterator[Path]:
    """Yield the path of every value in a document, the document itself left out."""
    entries: Any = ()
    if isinstance(document, dict):
        entries = document.items()
    elif isinstance(document, list):
        entries = enumerate(document)
    for key, value in entries:
        yield (*here, key)
        yield from places(value, (*here, key))


def replaced(document: Any, place: Path, value: Any) -> Any:
    """Return a copy of a document with another value at a place."""
    changed = copy.deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = copy.deepcopy(value)
    return changed


def without(document: Any, place: Path) -> Any:
    """Return a copy of a document that lacks what is at a place."""
    changed = copy.deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return changed


def mutate_json(data: bytes, most: int, seed: int) -> bytes:
    """Return JSON like `data` with some values changed, moved, doubled or gone, of at most `most` bytes."""
    chance = random.Random(seed)
    try:
        document = json.loads(data)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            document = _mutated(document, chance)
        made = json.dumps(document).encode()
    except (ValueError, RecursionError):
        made = json.dumps(full_spec()).encode()
    if chance.random() < 0.02:  # broken JSON now and then
        cut = chance.randrange(len(made) + 1)
        made = made[:cut] + bytes([chance.randrange(256)]) + made[cut:]
    return made if len(made) <= most else data


def _mutated(document: Any, chance: random.Random) -> Any:
    found = list(places(document))
    if not found:
        return chance.choice(VALUES)
    place = chance.choice(found)
    kind = chance.random()
    if kind < 0.2:
        return without(document, place)
    if kind < 0.4:
        other = chance.choice(found)
        value = document
        for key in other:
            value = value[key]
        return replaced(document, place, value)
    return replaced(document, place, chance.choice(VALUES))
