"""Id-mapped mounts: files that belong to other users inside than on their disk."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import namespaces
from pyctr_shim.oci.errors import OciError
from pyctr_sys.mount import (
    AT_FDCWD,
    MNT_DETACH,
    OPEN_TREE_CLONE,
    Attr,
    MountFlag,
    mount,
    mount_setattr,
    open_tree,
    umount2,
)
from support.oci_bundle import Lab, Spec

pytestmark = pytest.mark.root
SHOW = "stat -c '%u:%g' /mnt /mnt/file /mnt/inner"
IDS = [{"containerID": 0, "hostID": 1000, "size": 10}]


@pytest.fixture
def data(lab: Lab) -> Iterator[Path]:
    """A directory with a file of 3:4 and another mount below it."""
    tree_fd = open_tree(AT_FDCWD, str(lab.base), OPEN_TREE_CLONE)
    namespace_fd = namespaces.with_maps(IDS, IDS)
    try:
        mount_setattr(tree_fd, attr_set=Attr.IDMAP, idmap_fd=namespace_fd)
    except OSError as error:
        pytest.skip(f"the file system of {lab.base} cannot be id-mapped: {error.strerror}")
    finally:
        os.close(namespace_fd)
        os.close(tree_fd)
    directory, other = lab.base / "data", lab.base / "other"
    (directory / "inner").mkdir(parents=True)
    other.mkdir()
    mount(str(other), str(directory / "inner"), None, MountFlag.BIND)
    (directory / "file").touch()
    os.chown(directory / "file", 3, 4)
    yield directory
    umount2(str(directory / "inner"), MNT_DETACH)


def mapped(lab: Lab, source: Path, *options: str, script: str = SHOW, maps: list[dict[str, int]] | None = None) -> Spec:
    spec = lab.spec("sh", "-c", script)
    item: Spec = {"destination": "/mnt", "type": "bind", "source": str(source), "options": ["rbind", *options]}
    if maps:
        item |= {"uidMappings": maps, "gidMappings": maps}
    spec["mounts"].append(item)
    return spec


def in_user_namespace(lab: Lab, spec: Spec) -> dict[str, Any]:
    """Ask for a new one and return the options with a root that is its root's."""
    spec["linux"]["namespaces"].append({"type": "user"})
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    return with_root_of(lab, spec, 100_000)


def with_root_of(lab: Lab, spec: Spec, uid: int) -> dict[str, Any]:
    bundle = lab.bundle(spec)
    for directory, names, _ in os.walk(bundle / "rootfs"):
        for name in [*names, "."]:
            os.chown(os.path.join(directory, name), uid, uid)
    return {"bundle": bundle}


@pytest.mark.parametrize("options", [(), ("idmap",)])
def test_the_mounts_own_maps(lab: Lab, data: Path, options: tuple[str, ...]) -> None:
    """What lies below it keeps its owners; the files on disk do too."""
    assert lab.run(mapped(lab, data, *options, maps=IDS)).output.split() == ["1000:1000", "1003:1004", "0:0"]
    assert (data / "file").stat().st_uid == 3


def test_recursively(lab: Lab, data: Path) -> None:
    assert lab.run(mapped(lab, data, "ridmap", maps=IDS)).output.split() == ["1000:1000", "1003:1004", "1000:1000"]


def test_a_new_file_is_written_with_the_owner_before_the_map(lab: Lab, data: Path) -> None:
    spec = mapped(lab, data, script="echo x >/mnt/new", maps=IDS)
    spec["process"]["user"] = {"uid": 1005, "gid": 1005}
    data.chmod(0o777)

    lab.run(spec)

    assert (data / "new").stat().st_uid == 5


@pytest.mark.parametrize("option", ["idmap", "ridmap"])
def test_with_the_maps_of_the_containers_user_namespace(lab: Lab, data: Path, option: str) -> None:
    """Root's files are root's inside: nothing on disk belongs to a hundred thousand."""
    spec = mapped(lab, data, option, "ro", script=f"{SHOW}; touch /mnt/x")

    lines = lab.run(spec, **in_user_namespace(lab, spec)).output.splitlines()

    assert lines[:2] == ["0:0", "3:4"]
    assert lines[2] == ("0:0" if option == "ridmap" else "65534:65534")
    assert "Read-only file system" in lines[3]


def test_with_the_maps_of_a_joined_user_namespace(lab: Lab, data: Path) -> None:
    first = lab.spec("sleep", "1000")
    other = lab.running(first, **in_user_namespace(lab, first))
    spec = mapped(lab, data, "idmap")
    spec["linux"]["namespaces"].append({"type": "user", "path": f"/proc/{other.pid}/ns/user"})

    assert lab.run(spec, **with_root_of(lab, spec, 100_000)).output.split()[:2] == ["0:0", "3:4"]


def test_a_file_system_that_cannot_is_named(lab: Lab) -> None:
    with pytest.raises(OciError, match=r"mounts: /mnt: id-mapping /proc: its file system \(type 0x9fa0\) cannot be"):
        lab.create(mapped(lab, Path("/proc"), maps=IDS))


def test_a_new_file_system_is_not_mapped(lab: Lab) -> None:
    spec = lab.spec("true")
    item = {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "uidMappings": IDS, "gidMappings": IDS}
    spec["mounts"].append(item)

    with pytest.raises(OciError, match="mounts: /mnt: only a bind mount can be id-mapped"):
        lab.create(spec)


def test_maps_that_the_kernel_refuses_are_named(lab: Lab, data: Path) -> None:
    overlapping = [*IDS, {"containerID": 5, "hostID": 5, "size": 5}]

    with pytest.raises(OciError, match="uidMappings: Invalid argument"):
        lab.create(mapped(lab, data, maps=overlapping))
