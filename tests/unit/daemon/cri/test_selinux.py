"""SELinux labels of pods' containers; where the kernel has none, its policy and the mark that says so are files."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctr_wire.oci.image_spec import ProcessConfig
from pyctrd.core.mounts import Mount
from pyctrd.cri import creation, selinux
from pyctrd.cri.container_spec import Found, build_spec
from pyctrd.cri.records import ImageNames, Pod, PodContainer
from pyctrd.runtime.image_user import User

POD = "a" * 64
LOW, HIGH = selinux.categories(POD)
LEVEL = f"s0:c{LOW},c{HIGH}"
CONTEXTS = """# what containers are
process = "system_u:system_r:container_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file = "system_u:object_r:container_ro_file_t:s0"
"""


@pytest.fixture
def enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with SELinux and a policy; returns where its contexts are."""
    contexts = tmp_path / "selinux/ours/contexts/lxc_contexts"
    contexts.parent.mkdir(parents=True)
    contexts.write_text(CONTEXTS)
    (tmp_path / "selinux/config").write_text("# SELINUXTYPE=other\nSELINUX=enforcing\nSELINUXTYPE=ours\n")
    (tmp_path / "enforce").write_text("1")
    monkeypatch.setattr(selinux, "_ENABLED", tmp_path / "enforce")
    monkeypatch.setattr(selinux, "_POLICIES", tmp_path / "selinux")
    return contexts


def options(**wanted: str) -> image_pb2.SELinuxOption:
    return image_pb2.SELinuxOption(**wanted)


@pytest.mark.parametrize(
    ("wanted", "process", "files"),
    [
        ({}, f"system_u:system_r:container_t:{LEVEL}", f"system_u:object_r:container_file_t:{LEVEL}"),
        (
            {"level": "s0:c4,c5"},
            "system_u:system_r:container_t:s0:c4,c5",
            "system_u:object_r:container_file_t:s0:c4,c5",
        ),
        (
            {"user": "u", "role": "r", "type": "t", "level": "s1-s2:c1.c3"},
            "u:r:t:s1-s2:c1.c3",
            "u:object_r:container_file_t:s1-s2:c1.c3",
        ),
        ({"type": "spc_t"}, f"system_u:system_r:spc_t:{LEVEL}", f"system_u:object_r:container_file_t:{LEVEL}"),
    ],
)
@pytest.mark.usefixtures("enabled")
def test_what_is_asked_for_comes_over_the_policys_own(wanted: dict[str, str], process: str, files: str) -> None:
    assert selinux.labels(POD, options(**wanted)) == (process, files)


@pytest.mark.parametrize("level", ["s", "0", "s10", "s0:", "s0:c", "s0:c12345", "s0:c1,", "s0:c1.", "s0:c1 ", "s0,c1"])
def test_a_level_that_is_none_is_refused_on_any_machine(level: str) -> None:
    with pytest.raises(InvalidArgument, match="the format of 'level'"):
        selinux.labels(POD, options(level=level))


def test_without_selinux_or_a_policy_for_containers_nothing_is_labelled(enabled: Path) -> None:
    enabled.write_text('process = "system_u:system_r:container_t:s0"\n')
    assert selinux.labels(POD, options(type="t")) == ("", "")
    enabled.unlink()
    assert selinux.labels(POD, options(type="t")) == ("", "")


def test_this_machine_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selinux, "_ENABLED", tmp_path / "not there")
    assert not selinux.is_enabled()
    assert selinux.labels(POD, options(level="s0:c1,c2")) == ("", "")


def test_categories_are_two_of_all_and_spread() -> None:
    found = {selinux.categories(str(number)) for number in range(5000)}
    assert len(found) > 4900
    assert all(0 <= low < high < 1024 for low, high in found)
    assert min(low for low, _ in found) < 5
    assert max(high for _, high in found) > 1018


def spec_of(config: runtime_pb2.ContainerConfig, labels: selinux.Labels) -> dict[str, Any]:
    config.command.append("true")
    found: Mapping[str, Any] = {
        "container_id": "c", "user": User(0, 0, (), "/"), "capabilities": frozenset(), "machine": "x86_64",
        "hostname": "h", "files": {}, "namespaces": {"mount": ""}, "volumes": {}, "sources": {}, "images": {},
        "devices": [], "seccomp": None, "apparmor": "", "selinux": labels, "cgroup_namespaces": False,
        "image_name": "i", "hugepage_limits": False,
    }  # fmt: skip
    return build_spec(Pod(POD, image_pb2.PodSandboxConfig(), "", 0), config, ProcessConfig(), Found(**found))


def test_the_spec_has_both_labels_or_none() -> None:
    spec = spec_of(runtime_pb2.ContainerConfig(), selinux.Labels("p", "f"))
    assert (spec["process"]["selinuxLabel"], spec["linux"]["mountLabel"]) == ("p", "f")
    spec = spec_of(runtime_pb2.ContainerConfig(), selinux.Labels())
    assert "selinuxLabel" not in spec["process"]
    assert "mountLabel" not in spec["linux"]


class Snapshots:
    """Those of one container."""

    def named(self, name: str) -> "Snapshots":
        return self

    def mounts(self, namespace: str, key: str) -> list[Mount]:
        return [Mount("overlay", "overlay", "", ("lowerdir=a",)), Mount("bind", "b", "", ("rbind",))]


@pytest.mark.usefixtures("enabled")
def test_whose_labels_a_container_has_and_that_its_root_has_them() -> None:
    config, pod = runtime_pb2.ContainerConfig(), Pod(POD, image_pb2.PodSandboxConfig(), "", 0)
    security = config.linux.security_context
    maker = object.__new__(creation.Maker)
    maker._snapshots = Snapshots()  # type: ignore[assignment]

    def context() -> str:
        overlay, bind = maker.rootfs(PodContainer("c", pod, config, ImageNames("i"), 0))
        assert bind.options == ("rbind",)
        return overlay.options[-1]

    assert context() == f'context="system_u:object_r:container_file_t:{LEVEL}"'
    pod.config.linux.security_context.selinux_options.level = "s0:c1,c2"
    assert context() == 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    security.selinux_options.level = "s0:c3,c4"
    assert context() == 'context="system_u:object_r:container_file_t:s0:c3,c4"'
    security.privileged = True
    assert context() == "lowerdir=a"


def marked(path: Path) -> bytes | None:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False)
    except OSError:
        return None


@pytest.mark.root
def test_a_link_that_takes_a_directorys_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another container may be at work in the volume."""
    (tmp_path / "volume/a/b").mkdir(parents=True)
    (tmp_path / "outside/b").mkdir(parents=True)
    (tmp_path / "outside/b/secret").touch()
    really = os.setxattr

    def swap(path: str, *arguments: Any, **options: Any) -> None:
        really(path, *arguments, **options)
        if path.endswith("/b"):
            (tmp_path / "volume/a").rename(tmp_path / "moved")
            (tmp_path / "volume/a").symlink_to(tmp_path / "outside")

    monkeypatch.setattr(os, "setxattr", swap)
    with suppress(FailedPrecondition):
        selinux.mark([str(tmp_path / "volume")], "label")

    assert marked(tmp_path / "outside/b/secret") is None


@pytest.mark.root
def test_cve_2021_43816_what_is_the_machines_own_is_never_marked(tmp_path: Path) -> None:
    """Neither by its name nor by a link's, and no link below a volume is followed."""
    (tmp_path / "volume/below").mkdir(parents=True)
    (tmp_path / "volume/below/file").touch()
    (tmp_path / "outside").touch()
    (tmp_path / "volume/link").symlink_to(tmp_path / "outside")
    (tmp_path / "volume/hosts").symlink_to("/etc/hosts")
    before = marked(Path("/etc/hosts"))

    selinux.check_markable(str(tmp_path / "volume"))
    selinux.mark([str(tmp_path / "volume")], "label")

    assert marked(tmp_path / "volume/below/file") == marked(tmp_path / "volume") == b"label"
    assert marked(tmp_path / "outside") is None
    assert marked(Path("/etc/hosts")) == before
    for path in (
        "/",
        "/etc",
        "/etc/hosts",
        "/usr/lib",
        "/var/lib",
        "/tmp",
        str(tmp_path / "volume/hosts"),
        "/var/../etc",
    ):
        with pytest.raises(InvalidArgument, match="belongs to this machine"):
            selinux.check_markable(path)
