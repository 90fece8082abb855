"""Whose a container's cgroup becomes."""

from typing import Any

import pytest

from pyctr_shim.oci.cgroups import owner_of

CGROUPS = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}
USER = {"type": "user"}
MAPS = [{"containerID": 0, "hostID": 100_000, "size": 1000}, {"containerID": 1000, "hostID": 7, "size": 1}]


def spec(uid: int, *namespaces: dict[str, str], mount: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "process": {"user": {"uid": uid}},
        "mounts": [CGROUPS | (mount or {})],
        "linux": {"namespaces": list(namespaces), "uidMappings": MAPS},
    }


@pytest.mark.parametrize(("uid", "owner"), [(0, 100_000), (5, 100_005), (1000, 7), (2000, None)])
def test_the_hosts_uid_of_the_containers_user(uid: int, owner: int | None) -> None:
    assert owner_of(spec(uid, {"type": "cgroup"}, USER)) == owner


def test_without_a_user_namespace_uids_are_the_hosts() -> None:
    assert owner_of(spec(5, {"type": "cgroup"})) == 5


def test_what_is_shared_or_not_writable_keeps_its_owner() -> None:
    assert owner_of(spec(5)) is None
    assert owner_of(spec(5, {"type": "cgroup", "path": "/proc/1/ns/cgroup"})) is None
    assert owner_of(spec(5, {"type": "cgroup"}, mount={"options": ["ro"]})) is None
    assert owner_of(spec(5, {"type": "cgroup"}, mount={"destination": "/elsewhere"})) is None
