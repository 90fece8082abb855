"""`pyctr-oci` as containerd's shim and people call it."""

import array
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from pyctr_shim.oci import arguments, rdt, state
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_sys.process import set_child_subreaper
from support.oci_bundle import Lab, eventually, read_all
from support.oci_command import Command, detached
from support.patience import DEADLINE

pytestmark = pytest.mark.root


def test_the_whole_life(lab: Lab, oci: Command) -> None:
    bundle, pid_file = lab.bundle(lab.spec("sleep", "1000")), lab.base / "pid"

    assert oci("create", "--bundle", str(bundle), "--pid-file", str(pid_file), "c1", **detached()).returncode == 0
    assert oci.status("c1") == "created"
    assert oci("exec", "c1", "echo", "before its start").stdout == "before its start\n"
    assert oci("start", "c1").returncode == 0
    assert oci.status("c1") == "running"
    assert json.loads(oci("ps", "--format", "json", "c1").stdout) == [int(pid_file.read_text())]
    assert oci("pause", "c1").returncode == 0
    assert oci.status("c1") == "paused"
    assert oci("resume", "c1").returncode == 0
    refused = oci("delete", "c1")
    assert refused.stderr == "pyctr-oci: cannot delete container c1 that is not stopped: running\n"
    assert oci("kill", "c1", "KILL").returncode == 0
    eventually(lambda: oci.status("c1") == "stopped")
    assert oci("kill", "c1").stderr == "pyctr-oci: container not running\n"
    assert oci("start", "c1").stderr == "pyctr-oci: cannot start a container that has stopped\n"
    assert oci("delete", "c1").returncode == 0
    assert "does not exist" in oci.status("c1")
    assert os.listdir(lab.base / "state") == []


def test_a_poststart_hook_that_fails_after_the_programs_end_is_told(lab: Lab, oci: Command) -> None:
    """There is nobody left to kill for it: whoever is the parent of orphans has reaped the program."""
    spec = lab.spec("true")
    spec["hooks"] = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.5; exit 1"]}]}
    bundle, pid_file = lab.bundle(spec), lab.base / "pid"
    set_child_subreaper()
    try:
        assert oci("create", "--bundle", str(bundle), "--pid-file", str(pid_file), "c1", **detached()).returncode == 0
        reaper = Thread(target=os.waitpid, args=(int(pid_file.read_text()), 0))
        reaper.start()
        assert "hooks.poststart[0] /bin/sh: exit status 1" in oci("start", "c1").stderr
        reaper.join()
    finally:
        set_child_subreaper(on=False)


def test_run_passes_the_exit_status_and_deletes(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sh", "-c", "echo out; echo err >&2; exit 9"))

    ended = oci("run", "--bundle", str(bundle), "c1")

    assert (ended.returncode, ended.stdout, ended.stderr) == (9, "out\n", "err\n")
    assert os.listdir(lab.base / "state") == []


def test_run_passes_signals_on(lab: Lab, oci: Command) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    bundle = lab.bundle(lab.spec("sh", "-c", script))
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "run", "--bundle", str(bundle), "c1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) == 5


def test_exec(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    ended = oci(
        "exec", "-u", "5:6", "-e", "A=b", "--cwd", "/tmp", "c1", "sh", "-c", "id -u; id -g; echo $A; pwd; exit 4"
    )

    assert (ended.returncode, ended.stdout.split()) == (4, ["5", "6", "b", "/tmp"])
    document = {"args": ["echo", "from a file"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    (lab.base / "process.json").write_text(json.dumps(document))
    assert oci("exec", "--process", str(lab.base / "process.json"), "c1").stdout == "from a file\n"
    missing = oci("exec", "c1", "nope")
    assert missing.returncode == 255
    assert 'exec: "nope": executable file not found in $PATH' in missing.stderr


def test_errors_are_logged_as_containerd_reads_them(lab: Lab, oci: Command) -> None:
    bundle, log = lab.bundle(lab.spec("nope")), lab.base / "log.json"

    failed = oci("--log", str(log), "--log-format", "json", "create", "--bundle", str(bundle), "c1")

    assert failed.returncode == 1
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["level"] == "error"
    assert json.loads(line)["msg"] == 'exec: "nope": executable file not found in $PATH'
    assert os.listdir(lab.base / "state") == []


def test_a_terminal_goes_to_the_console_socket(lab: Lab, oci: Command) -> None:
    spec = lab.spec("sh", "-c", "tty")
    spec["process"]["terminal"] = True
    bundle = lab.bundle(spec)
    path = f"/tmp/pyctr-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        try:
            made = oci("create", "--bundle", str(bundle), "--console-socket", path, "c1", **detached())
            assert made.returncode == 0
            connection, _ = server.accept()
        finally:
            os.unlink(path)
    with connection:
        _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
    master_fd = array.array("i", ancillary[0][2])[0]

    oci("start", "c1")

    assert read_all(master_fd).strip() == "/dev/pts/0"
    os.close(master_fd)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("state", "../x"), "invalid container ID format: '../x'"),
        (("state", "absent"), "container does not exist"),
        (("kill", "absent"), "container does not exist"),
        (("kill", "absent", "FOO"), 'unknown signal "FOO"'),
        (("state",), "the following arguments are required: id"),
        (("bogus",), "invalid choice: 'bogus'"),
        (("state", "--bogus", "x"), "unrecognized arguments: --bogus"),
        (("update", "--memory", "many", "x"), "'many' is no size"),
        (("checkpoint", "--image-path", "/nowhere", "--leave-running", "absent"), "container does not exist"),
        (("restore", "--image-path", "/nowhere", "-d", "-b", "/nowhere", "c1"), "/nowhere/config.json: No such file"),
        (("create", "--bundle", "/nowhere", "c1"), "/nowhere/config.json: No such file or directory"),
    ],
)
def test_refusals(oci: Command, words: tuple[str, ...], text: str) -> None:
    refused = oci(*words)

    assert refused.returncode == 1
    assert text in refused.stderr


def test_a_log_that_cannot_be_written_is_named(oci: Command) -> None:
    refused = oci("--log", "/nowhere/log", "state", "absent")

    assert refused.returncode == 1
    assert refused.stderr == (
        "pyctr-oci: container does not exist\npyctr-oci: --log /nowhere/log: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [("<&-", "out\n", "err\n"), (">&-", "", "err\n"), ("2>&-", "out\n", ""), ("<&- >&- 2>&-", "", "")],
)
def test_a_closed_stream_is_an_empty_one(lab: Lab, oci: Command, closed: str, out: str, err: str) -> None:
    """Nothing that the runtime opens becomes the container's input or output."""
    bundle = lab.bundle(lab.spec("sh", "-c", "cat; echo out; echo err >&2; exit 3"))
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root)]

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        wrapper = ["sh", "-c", f'exec "$@" {closed}', "sh", *line]
        return subprocess.run([*wrapper, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)

    ended = run("run", "--bundle", str(bundle), "c1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, out, err)
    for command in (("--version",), ("features",), ("list",), ("--help",)):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_an_id_is_taken_once(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("create", "--bundle", str(bundle), "c1", **detached())

    again = oci("create", "--bundle", str(bundle), "c1")

    assert "container with given ID already exists" in again.stderr
    assert oci.status("c1") == "created"


def test_delete_force_ends_what_runs_and_accepts_what_is_absent(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    assert oci("delete", "--force", "c1").returncode == 0
    assert oci("delete", "--force", "c1").returncode == 0


def test_update_and_events(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    assert oci("update", "--pids-limit", "77", "c1").returncode == 0

    counters = json.loads(oci("events", "--stats", "c1").stdout)
    assert counters["data"]["pids"] == {"current": 1, "limit": 77}


def test_update_of_intel_rdt(lab: Lab, oci: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first makes a group, in a directory that stands for resctrl; the second changes its limits."""
    resctrl = lab.base / "resctrl"
    resctrl.mkdir()
    mountinfo = lab.base / "mountinfo"
    mountinfo.write_text(f"30 24 0:26 / {resctrl} rw - resctrl resctrl rw\n")
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())
    refused = oci("update", "--mem-bw-schema", "MB:0=70", "c1")
    monkeypatch.setattr(rdt, "plan", partial(rdt.plan, mountinfo=str(mountinfo)))

    def write(path: str, text: str) -> None:
        for name, data in (("tasks", ""), (path.rpartition("/")[2], text)):  # the kernel's groups have theirs
            with Path(path).with_name(name).open("a") as file:
                file.write(data)

    monkeypatch.setattr(rdt, "_write", write)

    def update(*words: str) -> None:
        options = arguments.parse(["--root", str(oci.root), "update", *words, "c1"])
        assert options.command(options) == 0

    update("--mem-bw-schema", "MB:0=70")
    update("--l3-cache-schema", "L3:0=f")

    record = state.read(str(oci.root / "c1"))
    assert "linux.intelRdt: no resctrl file system is mounted" in refused.stderr
    assert (resctrl / "c1/schemata").read_text() == "MB:0=70\nL3:0=f\n"
    assert (resctrl / "c1/tasks").read_text() == str(record.pid)
    assert record.linux["rdtMade"] == [str(resctrl / "c1")]
    for path in (resctrl / "c1").iterdir():
        path.unlink()
    assert oci("delete", "--force", "c1").returncode == 0
    assert not (resctrl / "c1").exists()


def test_an_update_of_intel_rdt_that_fails_leaves_no_group(
    lab: Lab, oci: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.base / "resctrl").mkdir()
    mountinfo = lab.base / "mountinfo"
    mountinfo.write_text(f"30 24 0:26 / {lab.base}/resctrl rw - resctrl resctrl rw\n")
    oci("run", "-d", "--bundle", str(lab.bundle(lab.spec("sleep", "1000"))), "c1", **detached())
    before = state.read(str(oci.root / "c1"))
    monkeypatch.setattr(rdt, "plan", partial(rdt.plan, mountinfo=str(mountinfo)))
    options = arguments.parse(["--root", str(oci.root), "update", "--mem-bw-schema", "MB:0=70", "c1"])

    with pytest.raises(OciError, match=r"linux.intelRdt: .*/c1/schemata: No such file or directory"):
        options.command(options)

    assert state.read(str(oci.root / "c1")) == before
    assert not list((lab.base / "resctrl").iterdir())


@pytest.mark.parametrize(("options", "own"), [((), "1"), (("--no-new-keyring",), "0"), (("--no-pivot",), "1")])
def test_a_session_keyring_is_new_unless_told_otherwise(
    lab: Lab, oci: Command, options: tuple[str, ...], own: str
) -> None:
    bundle = lab.bundle(lab.spec("grep", "-c", "_ses.c1", "/proc/keys"))

    assert oci("run", *options, "--bundle", str(bundle), "c1").stdout == f"{own}\n"


def test_fds_are_preserved(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sh", "-c", "cat <&3"))
    command = f"{sys.executable} -m pyctr_shim.oci --root {oci.root} run --preserve-fds 1 --bundle {bundle} c1"
    line = f"exec {command} 3</etc/hostname"

    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, timeout=2 * DEADLINE)

    assert ended.stdout == Path("/etc/hostname").read_text()


def test_features_and_spec(lab: Lab, oci: Command) -> None:
    features = json.loads(oci("features").stdout)
    assert features["linux"]["cgroup"] == {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True}

    assert oci("spec", "--bundle", str(lab.base)).returncode == 0
    assert json.loads((lab.base / "config.json").read_text())["process"]["args"] == ["sh"]
    assert "File config.json exists. Remove it first" in oci("spec", "--bundle", str(lab.base)).stderr
    assert oci("--version").stdout.startswith("pyctr-oci version ")


def test_list_and_state_are_as_runc_prints_them(lab: Lab, oci: Command) -> None:
    spec = lab.spec("sleep", "1000")
    spec["root"]["path"] = "./rootfs/"
    bundle = lab.bundle(spec)
    oci("create", "--bundle", str(bundle), "c1", **detached())

    state = json.loads(oci("state", "c1").stdout)
    (listed,) = json.loads(oci("list", "--format", "json").stdout)
    heading, row = oci("list").stdout.splitlines()

    assert state == listed
    assert (state["rootfs"], state["owner"], state["status"]) == (f"{bundle}/rootfs", "root", "created")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", state["created"])
    assert heading.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert row.split() == ["c1", str(state["pid"]), "created", str(bundle), state["created"], "root"]
    assert row.index("created") == heading.index("STATUS")


def test_what_is_no_container_is_not_listed(lab: Lab, oci: Command) -> None:
    (lab.base / "state/empty").mkdir(parents=True)
    (lab.base / "state/file").touch()

    assert json.loads(oci("list", "--format", "json").stdout) == []
    assert oci("list").stdout.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    shutil.rmtree(lab.base / "state")


def test_ps_takes_options_of_ps(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    heading, line = oci("ps", "c1", "-eo", "pid,args").stdout.splitlines()

    assert (heading.split(), line.split()[1:]) == (["PID", "COMMAND"], ["sleep", "1000"])
    assert oci("ps", "c1", "-eo", "args").stderr == "pyctr-oci: ps: no column PID in what it prints\n"
    assert oci("ps", "c1", "--bogus").stderr.startswith("pyctr-oci: ps: error: ")


def test_events_are_as_runc_prints_them(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "events", "--interval", "50ms", "c1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(2)]
        oci("kill", "c1", "9")

        assert process.wait(60) == 0
        process.stdout.read()

    assert [(event["type"], event["id"]) for event in events] == [("stats", "c1")] * 2
    data = events[0]["data"]
    assert data["cpu"]["usage"]["total"] > 0
    assert {"limit", "usage", "max", "failcnt"} == data["memory"]["usage"].keys()
    assert data["memory"]["raw"]
    assert data["pids"]["current"] == 1
    assert "is not running" in oci("events", "c1").stderr


def test_events_tell_of_a_kill_for_memory_at_once(lab: Lab, oci: Command) -> None:
    spec = lab.spec("sleep", "1000")
    spec["linux"]["resources"] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    oci("run", "-d", "--bundle", str(lab.bundle(spec)), "c1", **detached())
    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "events", "--interval", "1h", "c1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "stats"  # from now on it would see one
        oci("exec", "c1", "sh", "-c", "head -c 100000000 /dev/zero | busybox tail -c 100000000 >/dev/null")
        told = next(event for line in process.stdout if (event := json.loads(line))["type"] != "stats")
        oci("kill", "c1", "9")
        process.stdout.read()

    assert told == {"type": "oom", "id": "c1"}


def test_who_starts_twice_is_told_so(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    assert oci("start", "c1").stderr == "pyctr-oci: cannot start an already running container\n"
    assert oci("resume", "c1").stderr == "pyctr-oci: container not paused\n"


def test_exec_waits_for_a_paused_container_if_told_to(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())
    oci("pause", "c1")
    refused = oci("exec", "c1", "true")
    assert refused.returncode == 255
    assert "cannot exec in a paused container (use --ignore-paused to override)" in refused.stderr
    assert oci("pause", "c1").stderr == "pyctr-oci: container not running\n"

    line = [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "exec", "--ignore-paused", "c1"]
    with subprocess.Popen([*line, "echo", "at last"], stdout=subprocess.PIPE, text=True) as process:
        eventually(lambda: len(json.loads(oci("ps", "--format", "json", "c1").stdout)) == 2)
        oci("resume", "c1")

        assert process.communicate(timeout=2 * DEADLINE)[0] == "at last\n"
        assert process.returncode == 0


def test_exec_in_a_cgroup_below(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())
    (pid,) = json.loads(oci("ps", "--format", "json", "c1").stdout)
    path = next(line.split(":")[2] for line in cgroups_of(pid) if ":pids:" in line or line.startswith("0::/pyctr"))
    for directory in {*mounted().controllers.values(), mounted().unified} - {""}:
        if os.path.isdir(directory + path):
            os.makedirs(f"{directory}{path}/below")
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 has none in a new one
        if cpuset := mounted().controllers.get("cpuset"):
            Path(f"{cpuset}{path}/below/{name}").write_text(Path(f"{cpuset}{path}/{name}").read_text())

    assert f"{path}/below\n" in oci("exec", "--cgroup", "below", "c1", "cat", "/proc/self/cgroup").stdout

    assert "No such file or directory" in oci("exec", "--cgroup", "nowhere", "c1", "true").stderr
    assert "is not below the container's" in oci("exec", "--cgroup", "../x", "c1", "true").stderr


def cgroups_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()


def test_a_pidfd_goes_to_its_socket(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    path = f"/tmp/pyctr-test-{os.getpid()}.pidfd"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        try:
            oci("create", "--bundle", str(bundle), "--pidfd-socket", path, "c1", **detached())
            connection, _ = server.accept()
        finally:
            os.unlink(path)
    with connection:
        _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
    pidfd = array.array("i", ancillary[0][2])[0]

    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    os.close(pidfd)
    eventually(lambda: oci.status("c1") == "stopped")


def test_a_poststop_hook_that_fails_is_a_warning(lab: Lab, oci: Command) -> None:
    spec = lab.spec("true")
    spec["hooks"] = {"poststop": [{"path": "/bin/false"}]}
    bundle, log = lab.bundle(spec), lab.base / "log.json"

    ended = oci("--log", str(log), "--log-format", "json", "run", "--bundle", str(bundle), "c1")

    assert ended.returncode == 0
    assert "hooks.poststop[0] /bin/false" in ended.stderr
    assert json.loads(log.read_text())["level"] == "warning"
    assert os.listdir(lab.base / "state") == []


def test_a_kill_reaches_all_where_init_is_not_the_first_of_its_namespace(lab: Lab, oci: Command) -> None:
    spec = lab.spec("sh", "-c", "sleep 1000 & exec sleep 1000")
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != "pid"]
    bundle = lab.bundle(spec)
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())
    eventually(lambda: len(json.loads(oci("ps", "--format", "json", "c1").stdout)) == 2)

    assert oci("kill", "c1", "KILL").returncode == 0

    eventually(lambda: json.loads(oci("ps", "--format", "json", "c1").stdout) == [])


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_what_waits_for_its_start_is_ended_by_what_ends_programs(lab: Lab, oci: Command, name: str) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("create", "--bundle", str(bundle), "c1", **detached())
    assert oci("kill", "c1", "USR1").returncode == 0
    assert json.loads(oci("state", "c1").stdout)["status"] == "created"

    assert oci("kill", "c1", name).returncode == 0

    eventually(lambda: json.loads(oci("state", "c1").stdout)["status"] == "stopped")
    assert oci("delete", "c1").returncode == 0


def test_limits_have_units(lab: Lab, oci: Command) -> None:
    bundle = lab.bundle(lab.spec("sleep", "1000"))
    oci("run", "-d", "--bundle", str(bundle), "c1", **detached())

    assert oci("update", "--memory", "64m", "--memory-swap", "-1", "c1").returncode == 0
    assert json.loads(oci("events", "--stats", "c1").stdout)["data"]["memory"]["usage"]["limit"] == 64 << 20
    document = subprocess.run(
        [sys.executable, "-m", "pyctr_shim.oci", "--root", str(oci.root), "update", "--resources", "-", "c1"],
        input='{"pids": {"limit": 55}}',
        text=True,
        check=False,
    )
    assert document.returncode == 0
    assert json.loads(oci("events", "--stats", "c1").stdout)["data"]["pids"]["limit"] == 55


def test_a_spec_for_one_who_is_not_root(lab: Lab, oci: Command) -> None:
    assert oci("spec", "--rootless", "--bundle", str(lab.base)).returncode == 0

    linux = json.loads((lab.base / "config.json").read_text())["linux"]
    kinds = {item["type"] for item in linux["namespaces"]}
    assert "user" in kinds
    assert "network" not in kinds
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": os.geteuid(), "size": 1}]
    assert "resources" not in linux
