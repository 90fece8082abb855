"""The shim drives whichever runtime makes the container: what clients see of it is the same."""

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from pyctr_wire.containerd.cgroups.v1 import metrics_pb2
from pyctr_wire.containerd.cgroups.v2 import metrics_pb2 as v2
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types.task import task_pb2 as types
from pyctr_wire.errors import NotFound, UnknownError
from support import runtimes
from support.shim_harness import DEADLINE, Host, Running, eventually, host

pytestmark = pytest.mark.root

Run = Callable[..., Running]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


@pytest.fixture(params=runtimes.ALL)
def runtime(request: pytest.FixtureRequest) -> str:
    runtimes.options_of(request.param)
    return str(request.param)


@pytest.fixture
def create(shims: Host, runtime: str, request: pytest.FixtureRequest) -> Iterator[Run]:
    """Makes containers of one runtime; afterwards nothing of them is left."""
    options = runtimes.options_of(runtime)
    made: list[Running] = []

    def make(*arguments: str, **settings: Any) -> Running:
        id = f"{runtime}-{next(_numbers)}"
        container = shims.create(id, *arguments, runtime=options, **settings)
        made.append(container)
        return container

    yield make
    for container in made:
        assert not [line for line in mounts() if str(container.bundle) in line]
        assert cgroups(shims, container.id) == []
        assert sorted(path.name for path in container.bundle.glob(".*")) == []
        assert not any((container.bundle / "runtime").glob("*"))


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def cgroups(shims: Host, id: str) -> list[str]:
    found = [*Path("/sys/fs/cgroup").glob(f"*/{shims.group}/{id}"), *Path("/sys/fs/cgroup").glob(f"{shims.group}/{id}")]
    return list(map(str, found))


def topics(shims: Host, container: Running) -> list[str]:
    return [told.topic.removeprefix("/tasks/") for told in shims.events.about(container.id)]


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("/bin/busybox sh -c 'kill -SEGV $$'; exit $?", 139)]
)
def test_exit_status_and_events(shims: Host, create: Run, script: str, status: int) -> None:
    container = create("sh", "-c", script)
    container.start()

    assert container.wait() == status
    assert json.loads((container.bundle / "exits/init.json").read_text())["exit_status"] == status
    deleted = container.delete()
    assert (deleted.pid, deleted.exit_status) == (container.pid, status)
    container.shut_down()
    assert topics(shims, container) == ["create", "start", "exit", "delete"]


def test_what_is_killed_has_ended_by_that_signal(create: Run) -> None:
    container = create("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do /bin/busybox sleep 0.1; done")
    container.start()
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    with pytest.raises(NotFound, match="process already finished"):
        container.kill(signal.SIGTERM)
    container.delete()
    container.shut_down()


@pytest.mark.parametrize("everything", [False, True])
def test_what_waits_for_its_start_is_ended_by_what_ends_programs(create: Run, everything: bool) -> None:
    container = create("sleep", "1000")
    container.kill(signal.SIGUSR1, everything=everything)
    assert container.state().status == types.CREATED
    container.kill(signal.SIGTERM, everything=everything)

    assert container.wait() != 0
    container.delete()
    container.shut_down()


def test_a_signal_reaches_the_program(shims: Host, create: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'exit 5' TERM; echo up; while :; do /bin/busybox sleep 0.1; done"
    container = create("sh", "-c", script, stdio={"stdout": f"file://{log}"})
    container.start()
    eventually(lambda: log.exists() and log.read_text() == "up\n", "the trap is set")
    container.kill(signal.SIGTERM)

    assert container.wait() == 5
    container.delete()
    container.shut_down()


def test_output_of_all_that_was_written_is_in_the_log(create: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; echo end >&2"
    container = create("sh", "-c", script, stdio={"stdout": f"json-file://{log}", "stderr": f"json-file://{log}"})
    container.start()

    assert container.wait() == 0
    container.delete()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["log"] for line in lines if line["stream"] == "stdout"] == [f"line {i}\n" for i in range(2000)]
    assert [line["log"] for line in lines if line["stream"] == "stderr"] == ["end\n"]
    container.shut_down()


def test_execs_have_statuses_of_their_own(shims: Host, create: Run) -> None:
    container = create("sleep", "1000")
    container.start()
    for number in range(3):
        container.exec(f"e{number}", "sh", "-c", f"exit {number}")
        pid = container.start(f"e{number}")
        assert pid > 0
        assert container.wait(f"e{number}") == number
        deleted = container.delete(f"e{number}")
        assert (deleted.pid, deleted.exit_status) == (pid, number)
    container.exec("long", "sleep", "1000")
    container.start("long")
    container.kill(signal.SIGKILL, exec_id="long")
    assert container.wait("long") == 137
    container.end()
    told = topics(shims, container)
    assert told.count("exec-added") == told.count("exec-started") == 4
    assert told.index("exec-started") < told.index("exit")
    assert told[-2:] == ["exit", "delete"]


def test_what_joins_sees_the_container(create: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    container = create("sleep", "1000")
    container.start()
    container.exec("look", "sh", "-c", "/bin/busybox hostname; /bin/busybox echo $$", stdout=f"file://{log}")
    pid = container.start("look")
    assert container.wait("look") == 0
    name, number = log.read_text().split()
    assert name == container.id
    assert int(number) not in (1, pid)
    container.end()


def test_terminals(create: Run) -> None:
    container = create("sh", "-c", "read line; echo got $line; /bin/busybox stty size; exit 3", terminal=True)
    client = container.attach(exec_id="", stdin=True, stdout=True, stderr=False)
    assert client.hello()["terminal"] is True
    container.client.call("ResizePty", pb.ResizePtyRequest(id=container.id, width=97, height=31))
    container.start()
    client.send(1, b"word\n")
    assert container.wait() == 3
    output = b"".join(payload for kind, payload in client.rest() if kind == 2)
    client.close()
    assert b"got word" in output
    assert b"31 97" in output
    container.delete()
    container.shut_down()


def test_an_exec_with_a_terminal(create: Run) -> None:
    container = create("sleep", "1000")
    container.start()
    container.exec("tty", "sh", "-c", "test -t 0 && test -t 1 && echo terminal; exit 4", terminal=True)
    client = container.attach(exec_id="tty", stdin=True, stdout=True, stderr=False)
    client.hello()
    container.start("tty")
    assert container.wait("tty") == 4
    assert b"terminal\r\n" in b"".join(payload for kind, payload in client.rest() if kind == 2)
    client.close()
    container.end()


def test_attached_clients_send_input(create: Run) -> None:
    container = create("cat", stdio=dict.fromkeys(("stdin", "stdout", "stderr"), "attach:"))
    client = container.attach(exec_id="", stdin=True, stdout=True, stderr=True)
    client.hello()
    container.start()
    client.send(1, b"bytes\n")
    client.send(1, b"")
    assert container.wait() == 0
    assert b"".join(payload for kind, payload in client.rest() if kind == 2) == b"bytes\n"
    client.close()
    container.delete()
    container.shut_down()


def test_a_program_that_is_not_there_is_named(create: Run, shims: Host, runtime: str) -> None:
    """By Create or by Start, as each runtime does; nothing is left either way."""
    container = create("x")
    spec = json.loads((container.bundle / "config.json").read_text())
    container.end()
    bundle = shims.bundle(f"missing-{runtime}", {**spec, "process": {**spec["process"], "args": ["/no/such"]}})
    client, _request, _pid = shims.shim(f"missing-{runtime}")
    asked = pb.CreateTaskRequest(id=f"missing-{runtime}", bundle=str(bundle), options=runtimes.options_of(runtime))
    with pytest.raises(UnknownError, match=r"/no/such.*(no such file|No such file|not found)") as failed:  # noqa: PT012
        client.call("Create", asked)
        client.call("Start", pb.StartRequest(id=f"missing-{runtime}"))
    assert str(failed.value).startswith("OCI runtime ")
    with contextlib.suppress(NotFound):  # if Create has failed
        client.call("Wait", pb.WaitRequest(id=f"missing-{runtime}"))
        client.call("Delete", pb.DeleteRequest(id=f"missing-{runtime}"))
    client.call("Shutdown", pb.ShutdownRequest(id=f"missing-{runtime}"))
    client.close()
    assert cgroups(shims, f"missing-{runtime}") == []


def test_a_program_that_an_exec_does_not_find_is_named(create: Run) -> None:
    container = create("sleep", "1000")
    container.start()
    spec = {"user": {"uid": 0, "gid": 0}, "args": ["nothing-here"], "env": ["PATH=/bin"], "cwd": "/"}
    packed = any_pb2.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=json.dumps(spec).encode()
    )
    container.client.call("Exec", pb.ExecProcessRequest(id=container.id, exec_id="e", spec=packed))
    with pytest.raises(UnknownError, match=r"OCI runtime exec failed: .*nothing-here.*(not found|No such file)"):
        container.start("e")
    assert container.state().status == 2
    container.end()


def test_it_is_frozen_and_goes_on(shims: Host, create: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    container = create(
        "sh", "-c", "while :; do echo tick; /bin/busybox sleep 0.02; done", stdio={"stdout": f"file://{log}"}
    )
    container.start()
    eventually(lambda: log.exists() and log.stat().st_size > 0, "it runs")
    container.client.call("Pause", pb.PauseRequest(id=container.id))
    assert container.state().status == 4
    size = log.stat().st_size
    select.select([], [], [], 0.2)
    assert log.stat().st_size <= size + len("tick\n")  # what was in the pipe
    container.client.call("Resume", pb.ResumeRequest(id=container.id))
    size = log.stat().st_size
    eventually(lambda: log.stat().st_size > size, "it goes on")
    container.client.call("Pause", pb.PauseRequest(id=container.id))
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.delete()
    container.shut_down()
    assert topics(shims, container).count("paused") == 2


def test_processes_are_listed(create: Run) -> None:
    container = create("sh", "-c", "/bin/busybox sleep 1000 & wait")
    container.start()
    container.exec("e", "sleep", "1000")
    joined = container.start("e")

    def listed() -> dict[int, bool]:
        answer = container.client.call("Pids", pb.PidsRequest(id=container.id))
        return {one.pid: one.HasField("info") for one in answer.processes}

    eventually(lambda: len(listed()) == 3, "the shell has a child")
    assert listed()[joined] is True
    assert listed()[container.pid] is False
    container.end()


def test_all_processes_are_killed_without_a_pid_namespace(create: Run) -> None:
    container = create("sh", "-c", "/bin/busybox sleep 1000 & exit 9", own_pids=False)
    container.start()
    assert container.wait() == 9
    container.delete()
    container.shut_down()


def test_stats_and_limits(create: Run) -> None:
    """As the shim tells them, and as the kernel has them."""
    container = create("sleep", "1000", resources={"pids": {"limit": 20}, "memory": {"limit": 64 << 20}})
    container.start()

    assert told_limits(container) == kernels_limits(container.pid) == (20, 64 << 20)

    resources = any_pb2.Any(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        value=json.dumps({"memory": {"limit": 48 << 20}}).encode(),
    )
    container.client.call("Update", pb.UpdateTaskRequest(id=container.id, resources=resources))
    assert told_limits(container) == kernels_limits(container.pid) == (20, 48 << 20)
    container.end()


def told_limits(container: Running) -> tuple[int, int]:
    """Return how many processes and how much memory are allowed, from Stats."""
    stats = container.client.call("Stats", pb.StatsRequest(id=container.id)).stats
    if stats.type_url == metrics_pb2.Metrics.DESCRIPTOR.full_name:
        old = metrics_pb2.Metrics.FromString(stats.value)
        return old.pids.limit, old.memory.usage.limit
    assert stats.type_url == v2.Metrics.DESCRIPTOR.full_name
    new = v2.Metrics.FromString(stats.value)
    return new.pids.limit, new.memory.usage_limit


def kernels_limits(pid: int) -> tuple[int, int]:
    """Return the same from the cgroup that the process is in."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            found[controller] = path
    if "memory" not in found:
        directory = Path(f"/sys/fs/cgroup{found['']}")
        return int((directory / "pids.max").read_text()), int((directory / "memory.max").read_text())
    pids, memory = (Path(f"/sys/fs/cgroup/{name}{found[name]}") for name in ("pids", "memory"))
    return int((pids / "pids.max").read_text()), int((memory / "memory.limit_in_bytes").read_text())


def test_a_kill_for_memory_is_told(shims: Host, create: Run) -> None:
    # tail keeps the whole of a line.
    container = create("sh", "-c", "/bin/busybox tail /dev/zero", resources={"memory": {"limit": 8 << 20}})
    container.start()
    container.wait()
    shims.events.wait_for("/tasks/oom", container_id=container.id)
    container.delete()
    container.shut_down()


def test_a_shim_sleeps_and_wakes_beside_it(create: Run) -> None:
    container = create("sleep", "1000")
    container.start()
    eventually((container.bundle / "asleep").exists, "the shim falls asleep")
    container.exec("after", "sh", "-c", "exit 6")
    container.start("after")
    assert container.wait("after") == 6
    container.end()


def test_a_lost_shims_container_is_buried(shims: Host, create: Run, runtime: str) -> None:
    """The cold command ends what the shim has left, with the runtime or without it."""
    container = create("sh", "-c", "/bin/busybox sleep 1000 & wait")
    container.start()
    pidfd = os.pidfd_open(container.pid)
    os.kill(container.shim_pid, signal.SIGKILL)
    command = [sys.executable, "-m", "pyctr_shim", "-namespace", "ns", "-address", "x", "-id", container.id]
    done = subprocess.run(
        [*command, "-bundle", str(container.bundle), "delete"], capture_output=True, timeout=2 * DEADLINE, check=True
    )
    assert pb.DeleteResponse.FromString(done.stdout).pid == container.pid
    assert pb.DeleteResponse.FromString(done.stdout).exit_status == 255
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)
    container.client.close()


@pytest.mark.parametrize("name", ["runc", "crun"])
def test_a_snapshots_mounts_are_the_shims_to_remove(shims: Host, name: str, tmp_path: Path) -> None:
    options = runtimes.options_of(name)
    bundle = shims.container(f"mounted-{name}", "sh", "-c", "echo x > /made; exit 0")
    spec = json.loads((bundle / "config.json").read_text())
    spec["root"] = {"path": "rootfs"}
    (bundle / "config.json").write_text(json.dumps(spec))
    for directory in ("upper", "work"):
        (tmp_path / directory).mkdir()
    client, request, _pid = shims.shim(f"mounted-{name}")
    asked = pb.CreateTaskRequest(id=f"mounted-{name}", bundle=str(bundle), options=options)
    layers = [f"lowerdir={shims.rootfs}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    asked.rootfs.add(type="overlay", source="overlay", options=layers)
    created = client.call("Create", asked)
    container = Running(shims, f"mounted-{name}", bundle, client, request, _pid, created.pid)
    container.start()
    assert container.wait() == 0
    container.delete()
    container.shut_down()
    assert (tmp_path / "upper/made").read_text() == "x\n"
    assert not [line for line in mounts() if str(bundle) in line]


def test_state_is_kept_where_the_options_say(shims: Host, tmp_path: Path) -> None:
    options = runtimes.options(runtimes.path_of("runc"), root=str(tmp_path / "states"))
    container = shims.run("rooted", "sleep", "1000", runtime=options)
    assert (tmp_path / "states/ns/rooted").is_dir()
    container.end()
    assert not (tmp_path / "states/ns/rooted").exists()
