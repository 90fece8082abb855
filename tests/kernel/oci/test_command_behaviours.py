"""`pyctr-oci` where runc's and crun's own tests look: options, what is left, what ends with what."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pyctr_shim.oci.cgroups import mounted
from support.oci_bundle import Lab, eventually, with_namespaces
from support.oci_command import Command, detached

pytestmark = [pytest.mark.root, pytest.mark.full]


def run(lab: Lab, oci: Command, **namespaces: str | None) -> int:
    """Run a container that sleeps, and return its pid."""
    bundle = lab.bundle(with_namespaces(lab.spec("sleep", "1000"), **namespaces))
    assert oci("run", "-d", "--bundle", str(bundle), "c1", **detached()).returncode == 0
    return pids(oci)[0]


def pids(oci: Command) -> list[int]:
    found: list[int] = json.loads(oci("ps", "--format", "json", "c1").stdout)
    return found


def cgroup_directories(lab: Lab) -> list[str]:
    """Return the directories of the lab's containers in all hierarchies."""
    roots = {*mounted().controllers.values(), mounted().unified} - {""}
    return [entry.path for root in roots if os.path.isdir(root + lab.cgroup) for entry in os.scandir(root + lab.cgroup)
            if entry.is_dir()]  # fmt: skip


@pytest.mark.parametrize("command", ["run", "exec"])
def test_fds_to_hand_on_must_be_there(lab: Lab, oci: Command, command: str) -> None:
    """Otherwise the container would be handed one of the runtime's own, by its number."""
    if command == "exec":
        run(lab, oci)
        refused = oci("exec", "--preserve-fds", "2", "c1", "true")
    else:
        bundle = lab.bundle(lab.spec("true"))
        refused = oci("run", "--preserve-fds", "2", "--bundle", str(bundle), "c1")

    assert refused.returncode == (255 if command == "exec" else 1)
    assert refused.stderr == "pyctr-oci: --preserve-fds: fd 3: Bad file descriptor\n"


def test_what_is_kept_stays_until_it_is_deleted(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("true"))

    assert oci("run", "--keep", "--bundle", str(bundle), "c1").returncode == 0

    assert oci.status("c1") == "stopped"
    assert cgroup_directories(lab)
    assert oci("delete", "c1").returncode == 0
    assert not cgroup_directories(lab)


@pytest.mark.parametrize("force", [False, True])
def test_deleting_ends_what_has_outlived_init(lab: Lab, oci: Command, force: bool) -> None:
    init = run(lab, oci, pid=None)
    for _ in range(3):
        assert oci("exec", "-d", "c1", "sleep", "1000", **detached()).returncode == 0
    os.kill(init, 9)
    eventually(lambda: oci.status("c1") == "stopped")
    left = pids(oci)
    assert len(left) == 3

    assert oci("delete", *(["--force"] if force else []), "c1").returncode == 0

    eventually(lambda: not any(is_running(pid) for pid in left))
    assert not cgroup_directories(lab)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_kill_reaches_what_has_outlived_init(lab: Lab, oci: Command) -> None:
    init = run(lab, oci, pid=None)
    oci("exec", "-d", "c1", "sleep", "1000", **detached())
    os.kill(init, 9)
    eventually(lambda: len(pids(oci)) == 1)

    assert oci("kill", "c1", "KILL").returncode == 0

    eventually(lambda: pids(oci) == [])


def test_a_paused_container_can_be_deleted(lab: Lab, oci: Command) -> None:
    pid = run(lab, oci)
    oci("pause", "c1")

    assert oci("delete", "--force", "c1").returncode == 0

    assert not is_running(pid)
    assert not cgroup_directories(lab)


def test_cgroups_that_the_container_has_made_go_with_it(lab: Lab, oci: Command) -> None:
    pid = run(lab, oci)
    for directory in cgroup_directories(lab):
        if "cpuset" in directory:  # needs to be told its processors first
            continue
        os.makedirs(f"{directory}/foo/bar")
        if not mounted().is_v2:
            Path(f"{directory}/foo/bar/tasks").write_text(str(pid))

    assert oci("delete", "--force", "c1").returncode == 0

    assert not cgroup_directories(lab)


def test_a_bundle_that_is_gone_is_not_needed_to_end_it(lab: Lab, oci: Command) -> None:
    pid = run(lab, oci)
    shutil.rmtree(lab.base / "b1", ignore_errors=True)

    assert oci.status("c1") == "running"
    assert oci("kill", "c1", "KILL").returncode == 0
    eventually(lambda: not is_running(pid))
    assert oci("delete", "c1").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["c1", "false"], 1),
        (["c1", "sh", "-c", "exit 42"], 42),
        (["c1", "sh", "-c", "kill -TERM $$"], 143),
        (["--pid-file", "/nowhere/at/all", "c1", "true"], 255),
        (["c1", "no-such-program"], 255),
        (["c2", "true"], 255),
        (["--user", "me", "c1", "true"], 255),
    ],
)
def test_the_exit_statuses_of_exec(lab: Lab, oci: Command, arguments: list[str], status: int) -> None:
    run(lab, oci)

    assert oci("exec", *arguments).returncode == status


def test_exec_with_more_groups_in_the_callers_directory(lab: Lab, oci: Command) -> None:
    run(lab, oci)
    (lab.base / "here").mkdir()

    ended = oci("exec", "--pid-file", "pid", "-u", "1000:1000", "-g", "100", "-g", "65534", "c1", "id", "-G",
                cwd=lab.base / "here")  # fmt: skip

    assert ended.stdout == "1000 100 65534\n"
    assert int((lab.base / "here/pid").read_text()) > 1


@pytest.mark.parametrize("name", ["./{}", "{}/", "../{parent}/{}"])
def test_how_a_bundle_may_be_named(lab: Lab, oci: Command, name: str) -> None:
    bundle = lab.bundle(lab.spec("true"))
    given = name.format(bundle.name, parent=lab.base.name)

    assert oci("run", "--bundle", given, "c1", cwd=lab.base).returncode == 0
    assert oci("run", "c1", cwd=bundle).returncode == 0


def test_a_container_without_a_process(lab: Lab, oci: Command) -> None:
    spec = lab.spec()
    del spec["process"]
    bundle = lab.bundle(spec)

    assert oci("create", "--bundle", str(bundle), "c1", **detached()).returncode == 0
    assert oci.status("c1") == "created"
    assert oci("exec", "-e", "PATH=/bin", "c1", "echo", "hello").stdout == "hello\n"
    started = oci("start", "c1")
    assert (started.returncode, started.stderr) == (1, "pyctr-oci: process: is required to start a container\n")
    eventually(lambda: oci.status("c1") == "stopped")
    assert oci("delete", "c1").returncode == 0


@pytest.mark.skipif(mounted().is_v2, reason="version 2 has one hierarchy")
def test_exec_in_cgroups_of_some_controllers(lab: Lab, oci: Command) -> None:
    run(lab, oci)
    controllers = mounted().controllers
    path = next(line.split(":")[2] for line in Path(f"/proc/{pids(oci)[0]}/cgroup").read_text().splitlines()
                if ":pids:" in line)  # fmt: skip
    for controller, place in (("memory", "sub"), ("pids", "other"), ("cpu", "sub")):
        os.makedirs(f"{controllers[controller]}{path}/{place}", exist_ok=True)

    def places(*options: str) -> dict[str, str]:
        output = oci("exec", *options, "c1", "cat", "/proc/self/cgroup").stdout
        return {name: place.removeprefix(path) for line in output.splitlines()
                for _, names, place in [line.split(":", 2)] for name in filter(None, names.split(","))}  # fmt: skip

    found = places("--cgroup", "memory,cpu:sub", "--cgroup", "pids:/other")
    assert (found["memory"], found["cpu"], found["pids"], found["freezer"]) == ("/sub", "/sub", "/other", "")
    assert set(places("--cgroup", "/").values()) == {""}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--cgroup", ".."], "bad sub cgroup path"),
        (["--cgroup", "pids:x/../../y"], "bad sub cgroup path"),
        (["--cgroup", "whatever:/"], "unknown controller 'whatever'"),
        (["--cgroup", "nowhere"], "No such file or directory"),
    ],
)
def test_cgroups_that_exec_cannot_join(lab: Lab, oci: Command, options: list[str], text: str) -> None:
    run(lab, oci)

    refused = oci("exec", *options, "c1", "true")

    assert refused.returncode == 255
    assert text in refused.stderr
