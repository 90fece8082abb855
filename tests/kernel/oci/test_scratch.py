"""Where practice happens: what a process that was killed left goes, and nothing else does."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim.oci import scratch
from pyctr_shim.oci.cgroups import Cgroup, cgroup_for, mounted

pytestmark = pytest.mark.root


@pytest.fixture
def made() -> Iterator[list[Path]]:
    """Paths that are removed after the test, if they are there still."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


def is_there(cgroup: Cgroup) -> bool:
    hierarchies = mounted()
    mount_points = {*hierarchies.controllers.values(), hierarchies.unified} - {""}
    return any(os.path.exists(mount_point + cgroup.path) for mount_point in mount_points)


def test_a_directory_lasts_as_long_as_it_is_used() -> None:
    with scratch.practice_directory() as directory:
        assert os.stat(directory).st_mode & 0o777 == 0o700
        scratch.sweep()
        assert os.path.isdir(directory)
    assert not os.path.exists(directory)


def test_what_the_dead_left_is_swept(made: list[Path]) -> None:
    with scratch.practice_directory() as directory:
        namespace, pid, ticks, _ = directory.rpartition("pyctr-practice-")[2].split("-")
    assert pid == str(os.getpid())
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    left = [f"{namespace}-{gone.pid}-1-aa", f"{namespace}-{pid}-{int(ticks) - 1}-aa"]
    kept = [f"{namespace}-{pid}-{ticks}-aa", f"1-{gone.pid}-1-aa", f"{namespace}-{gone.pid}-1", "x"]
    directories = {name: Path(f"/tmp/pyctr-practice-{name}") for name in (*left, *kept)}
    cgroup = cgroup_for(mounted(), scratch.cgroup_of(str(directories[left[0]])))
    cgroup.create()
    for path in directories.values():
        path.mkdir()
        made.append(path)
    (directories[left[0]] / "file").write_text("x")
    link, others = (Path(f"/tmp/pyctr-practice-{namespace}-{gone.pid}-1-{end}") for end in ("bb", "cc"))
    link.symlink_to(directories["x"])
    others.mkdir()
    os.chown(others, 12345, 12345)
    made += [link, others]

    scratch.sweep()

    assert [name for name, path in directories.items() if path.exists()] == kept
    assert link.is_symlink()
    assert others.exists()
    assert not is_there(cgroup)


def test_a_cgroup_that_was_left_is_swept_with_what_is_in_it(made: list[Path]) -> None:
    with scratch.practice_directory() as directory, subprocess.Popen(["true"]) as gone:
        gone.wait()
        namespace = directory.rpartition("pyctr-practice-")[2].partition("-")[0]
    cgroup = cgroup_for(mounted(), f"/pyctr/pyctr-practice-{namespace}-{gone.pid}-1-dd")
    cgroup.create()
    assert is_there(cgroup)
    with subprocess.Popen(["sleep", "1000"], preexec_fn=cgroup.join) as stuck:
        scratch.sweep()
        assert stuck.wait(30) == -9
    scratch.sweep()
    assert not is_there(cgroup)
