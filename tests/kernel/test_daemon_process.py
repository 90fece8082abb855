"""The daemon as a process: what it refuses, what signals do, and what others may touch."""

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.empty_pb2 import Empty

from pyctr_sys.mount import MountFlag, mount, umount2
from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc
from pyctr_wire.containerd.services.sandbox.v1.sandbox_pb2 import StoreCreateRequest
from pyctr_wire.containerd.services.sandbox.v1.sandbox_pb2_grpc import StoreStub
from pyctr_wire.containerd.services.version.v1.version_pb2_grpc import VersionStub
from pyctr_wire.containerd.types import sandbox_pb2
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.cri.runtime_pb2_grpc import RuntimeServiceStub
from pyctr_wire.health.v1 import health_pb2, health_pb2_grpc
from pyctrd.composition import LATE_SERVICES
from support.daemon_process import DaemonProcess, wait_until

pytestmark = pytest.mark.root


def _refused(*arguments: str) -> str:
    """Start another daemon, which must refuse, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "pyctrd", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_second_daemon_refuses_what_the_first_one_owns(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Root, state and address: each alone is a reason, and the first one does not notice."""
    own = {"--root": str(daemon.root), "--state": str(daemon.state), "--address": str(daemon.address)}
    other = {"--root": str(tmp_path / "r"), "--state": str(tmp_path / "s"), "--address": str(tmp_path / "a")}

    for shared in own:
        chosen = {**other, shared: own[shared]}
        text = _refused(*(word for pair in chosen.items() for word in pair))
        if shared == "--address":
            assert text == f"pyctrd: address {daemon.address}: another server answers on it: failed precondition"
        else:
            assert f"{own[shared]} is in use by another pyctrd, pid {daemon.pid}" in text
    with daemon.channel() as channel:
        assert VersionStub(channel).Version(Empty(), timeout=30).version


def test_an_address_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")

    text = _refused("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), "--address", str(precious))

    assert text.endswith(f"address {precious}: exists and is not a socket: failed precondition")
    assert precious.read_text() == "data"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert _refused("--root", str(file / "r"), "--state", str(tmp_path / "s")) == f"pyctrd: {file}/r: Not a directory"
    assert _refused("--root", str(file), "--state", str(tmp_path / "s")) == f"pyctrd: {file}: Not a directory"
    assert _refused("--config", str(tmp_path)) == f"pyctrd: {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    ("name", "is_file", "reason"),
    [("metadata.db", False, "unable to open database file"), ("content", True, "Not a directory")],
)
def test_what_a_start_cannot_use_is_its_reason(tmp_path: Path, name: str, reason: str, *, is_file: bool) -> None:
    root = tmp_path / "r"
    (root / name).mkdir(parents=True)
    (root / "lock").write_text("")
    if is_file:
        (root / name).rmdir()
        (root / name).write_text("")
    assert _refused("--root", str(root), "--state", str(tmp_path / "s")) == f"pyctrd: {root}/{name}: {reason}"


def test_a_first_start_on_a_full_disk(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=64k none {tmp_path} && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "pyctrd", "--config", os.devnull,
         "--root", f"{tmp_path}/r", "--state", f"{tmp_path}/s"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"pyctrd: {tmp_path}/r/metadata.db: database or disk is full"


def test_a_directory_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    """Its mode would shut everybody out: /tmp's, say."""
    others = tmp_path / "others"
    others.mkdir(mode=0o755)
    (others / "precious").write_text("data")
    own = {"--root": str(tmp_path / "r"), "--state": str(tmp_path / "s")}

    for shared in own:
        chosen = {**own, shared: str(others)}
        text = _refused(*(word for pair in chosen.items() for word in pair))
        assert text.startswith(
            f"pyctrd: {others} has other things in it, such as precious: name a directory of its own"
        )
        assert stat.S_IMODE(others.stat().st_mode) == 0o755
        assert os.listdir(others) == ["precious"]


@pytest.mark.parametrize("command", [("upgrade",), ("publish", "--topic", "/t", "--namespace", "n")])
def test_commands_without_a_daemon_say_so(command: tuple[str, ...], tmp_path: Path) -> None:
    text = _refused("--state", str(tmp_path), *command)
    assert text == (
        f"pyctrd: {tmp_path}/pyctrd.sock: nobody answers: No such file or directory; is pyctrd running?"
        " --state DIR says where"
    )


@pytest.mark.parametrize("option", ["--root", "--state", "--config"])
def test_a_path_that_is_empty_is_none(option: str, tmp_path: Path) -> None:
    """A script's variable that is not set: the working directory is not meant."""
    done = subprocess.run(
        [sys.executable, "-m", "pyctrd", option, ""], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{option}" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("taken", "reason"),
    [
        ("sock", "address {}/sock: exists and is not a socket: failed precondition"),
        ("sock.ttrpc", "address {}/sock.ttrpc: exists and is not a socket: failed precondition"),
    ],
)
def test_a_directory_in_the_place_of_a_socket_is_named(taken: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / taken).mkdir()
    (tmp_path / "sock.123").mkdir()  # as if a process of that number had bound it

    text = _refused("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), "--address", str(tmp_path / "sock"))

    assert text == f"pyctrd: {reason.format(tmp_path)}"
    assert (tmp_path / "sock.123").is_dir()


def test_an_address_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    place = tmp_path / "read-only"
    place.mkdir()
    mount("none", str(place), "tmpfs", MountFlag.RDONLY)
    try:
        text = _refused("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), "--address", str(place / "sock"))
    finally:
        umount2(str(place))

    assert text == f"pyctrd: address {place}/sock.ttrpc: Read-only file system: failed precondition"


def test_files_beside_the_socket_are_nobody_elses_to_remove(tmp_path: Path) -> None:
    daemon = DaemonProcess()
    notes = daemon.address.with_name(f"{daemon.address.name}.2026")
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("precious")
    with daemon:
        assert notes.read_text() == "precious"


@pytest.mark.parametrize("kind", ["TaskExit", "TaskStart", "ContainerDelete", "ImageUpdate", "NoSuch"])
def test_events_that_are_none(daemon: DaemonProcess, kind: str) -> None:
    """Whoever may publish, and shims of other makes may, must not end the daemon with what does not decode."""
    event = any_pb2.Any(type_url=f"containerd.events.{kind}", value=b"\xff\xff")
    topics = ("/tasks/exit", "/tasks/start", "/containers/delete", "/containers/update", "/images/update")
    with daemon.channel() as channel:
        for topic in ("/loads/the/rest", *topics):
            request = events_pb2.PublishRequest(topic=topic, event=event)
            metadata = (("containerd-namespace", "default"),)
            events_pb2_grpc.EventsStub(channel).Publish(request, timeout=30, metadata=metadata)
            time.sleep(0.3)  # in which somebody follows events, and takes this one
        assert VersionStub(channel).Version(Empty(), timeout=30).version


def test_pods_that_nobody_can_read_are_no_reason_not_to_start() -> None:
    """Clients may write to the rows of sandboxes, and what they have written is there at each start."""
    with DaemonProcess() as daemon:
        with daemon.channel() as channel:
            for number, state in enumerate((b"[]", b"{}", b"{", b'{"handler": "", "created_at": "x"}')):
                sandbox = sandbox_pb2.Sandbox(sandbox_id=f"odd-{number}", spec=any_pb2.Any(type_url="x", value=b"\xff"))
                sandbox.extensions["pyctr.cri.Pod"].value = state
                request = StoreCreateRequest(sandbox=sandbox)
                StoreStub(channel).Create(request, timeout=30, metadata=(("containerd-namespace", "k8s.io"),))

        daemon.restart()

        with daemon.channel() as channel:
            runtime = RuntimeServiceStub(channel)
            assert list(runtime.ListPodSandbox(runtime_pb2.ListPodSandboxRequest(), timeout=30).items) == []


MOUNTING = """
import os, sys
from pathlib import Path
from pyctr_sys.mount import MountFlag, mount
mount(None, "/", None, MountFlag.REC | MountFlag.PRIVATE)
for name in (b"\\xfc", "\\u00a0x".encode(), b"\\r", b"\\x0c", "\\u2028".encode()):
    place = os.fsencode(sys.argv[1]) + b"/" + name
    os.mkdir(place)
    mount("", os.fsdecode(place), "tmpfs", 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def test_mounts_of_any_name(tmp_path: Path) -> None:
    """Whoever has fusermount may mount at a path that is no text; that is nobody else's trouble."""
    wrapper = ("unshare", "--mount", sys.executable, "-c", MOUNTING, str(tmp_path))
    with DaemonProcess(wrapper=wrapper) as daemon, daemon.channel() as channel:
        assert VersionStub(channel).Version(Empty(), timeout=30).version


@pytest.mark.parametrize("umask", [0, 0o777])
def test_cve_2024_25621_nobody_else_gets_at_anything_whatever_the_umask_is(umask: int) -> None:
    """Nor where an older version left a directory open; also CVE-2021-41103."""
    daemon = DaemonProcess(wrapper=("sh", "-c", f'umask {umask:04o}; exec "$@"', "sh"))
    daemon.root.mkdir(mode=0o755)
    daemon.state.mkdir(mode=0o777)
    with daemon:
        modes = {
            path: stat.S_IMODE(path.stat().st_mode)
            for path in (daemon.root, daemon.state, daemon.address, Path(f"{daemon.address}.ttrpc"))
        }
        assert list(modes.values()) == [0o700, 0o711, 0o660, 0o660]
        for path in (*daemon.root.rglob("*"), *daemon.state.rglob("*")):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                assert not mode & stat.S_IWOTH, path
        sockets = [line for line in Path("/proc/net/unix").read_text().splitlines() if "@" in line.split()[-1]]
        assert not [line for line in sockets if "pyctr" in line]


def test_a_socket_that_a_dead_daemon_left_is_taken_over() -> None:
    with DaemonProcess(config="[grpc]\nuid = 12\ngid = 34\n") as daemon:
        daemon.kill()
        assert daemon.address.exists()

        daemon.start()

        assert sorted(path.name for path in daemon.state.glob("pyctrd.sock*")) == [
            "pyctrd.sock",
            f"pyctrd.sock.{daemon.pid}",
            "pyctrd.sock.ttrpc",
            f"pyctrd.sock.ttrpc.{daemon.pid}",
        ]
        assert (daemon.address.stat().st_uid, daemon.address.stat().st_gid) == (12, 34)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_is_clean_and_told_to_everybody(number: signal.Signals, tmp_path: Path) -> None:
    """Streams end as unavailable, the service manager hears of it, and every line of the log is a record."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(60)
        with DaemonProcess(environment={"NOTIFY_SOCKET": str(tmp_path / "n")}) as daemon:
            assert manager.recv(1000).decode().split("\n") == ["READY=1", f"MAINPID={daemon.pid}"]
            with daemon.channel() as channel:
                stream = events_pb2_grpc.EventsStub(channel).Subscribe(events_pb2.SubscribeRequest(), timeout=60)
                stream.initial_metadata()

                assert daemon.stop(number) == 0

                with pytest.raises(grpc.RpcError) as raised:
                    next(iter(stream))
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert manager.recv(1000) == b"STOPPING=1"
            assert list(daemon.state.glob("pyctrd.sock*")) == []
            records = [json.loads(line) for line in daemon.log_text().splitlines()]
            events = [record["event"] for record in records if record["logger"] == "pyctrd"]
            assert events == ["ready", "stopping", "stopped"]
            assert all(record.keys() >= {"event", "level", "logger", "timestamp"} for record in records)


def test_a_hangup_reads_the_log_level_again() -> None:
    config = "[log]\nlevel = 'warning'\n"
    with DaemonProcess(config=config, log_level="") as daemon:
        assert '"ready"' not in daemon.log_text()

        (daemon.base / "config.toml").write_text("nonsense = 1\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "reload.failed" in daemon.log_text(), "the failure is logged")
        assert 'unknown key \\"nonsense\\"' in daemon.log_text()

        (daemon.base / "config.toml").write_text("[log]\nlevel = 'info'\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: '"reloaded"' in daemon.log_text(), "the reload is logged")


_METHODS = {
    "Content": "Info",
    "Controller": "Platform",
    "Diff": "Apply",
    "Engine": "Ops",
    "Events": "Publish",
    "ImageService": "ImageFsInfo",
    "Images": "Get",
    "Introspection": "Plugins",
    "Leases": "List",
    "Mounts": "List",
    "Namespaces": "Get",
    "RuntimeService": "Version",
    "Snapshots": "Stat",
    "Store": "Get",
    "Streaming": "Stream",
    "Transfer": "Transfer",
}


@pytest.mark.parametrize("service", sorted(LATE_SERVICES))
def test_what_is_loaded_late_is_there(daemon: DaemonProcess, service: str) -> None:
    """Health says so from the start, and a call never meets a service that is not there yet."""
    method = _METHODS[service.split(".")[-1]]
    with daemon.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        begin: Any = channel.stream_stream  # whose stubs want serializers
        call = begin(f"/{service}/{method}")(iter([b""]), timeout=30)
        try:
            list(call)
        except grpc.RpcError:
            assert not call.details().startswith("unknown"), call.details()


def test_other_signals_do_no_harm(daemon: DaemonProcess) -> None:
    os.kill(daemon.pid, signal.SIGUSR2)
    os.kill(daemon.pid, signal.SIGPIPE)
    os.kill(daemon.pid, signal.SIGUSR1)

    wait_until(lambda: "most recent call first" in daemon.log_text(), "the stacks are written")
    with daemon.channel() as channel:
        assert VersionStub(channel).Version(Empty(), timeout=30).version


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="under systemd, it depends on the unit")
def test_the_daemon_lives_in_a_cgroup_of_its_own(daemon: DaemonProcess) -> None:
    """A limit on it must not hit a shim."""
    cgroups = Path(f"/proc/{daemon.pid}/cgroup").read_text().splitlines()

    assert {line.split(":")[2] for line in cgroups} <= {"/pyctr/daemon", "/"}
    assert any(line.endswith(":/pyctr/daemon") for line in cgroups)


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="under systemd, the unit says so")
@pytest.mark.skipif(not Path("/sys/fs/cgroup/cpu/cpu.shares").exists(), reason="needs the cpu hierarchy of version 1")
def test_the_daemon_and_all_shims_weigh_more_than_one_process(daemon: DaemonProcess) -> None:
    assert int(Path("/sys/fs/cgroup/cpu/pyctr/cpu.shares").read_text()) > 1024


def test_the_daemon_takes_all_descriptors_that_it_may_and_containers_keep_their_limit() -> None:
    with DaemonProcess(wrapper=("sh", "-c", 'ulimit -Sn 500; exec "$@"', "sh")) as daemon:
        soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        assert soft == hard > 500
        assert resource.prlimit(_zygote(daemon), resource.RLIMIT_NOFILE)[0] == 500


def _zygote(daemon: DaemonProcess) -> int:
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    (zygote,) = [pid for pid in children if "zygote" in Path(f"/proc/{pid}/cmdline").read_text()]
    return int(zygote)


def test_the_zygote_is_no_child_of_grpc(daemon: DaemonProcess) -> None:
    """It is one thread that never loaded it, nor an event loop."""
    zygote = _zygote(daemon)

    assert len(list(Path(f"/proc/{zygote}/task").iterdir())) == 1
    mapped = Path(f"/proc/{zygote}/maps").read_text()
    assert "cygrpc" not in mapped
    assert "uvloop" not in mapped


def test_closed_streams_are_not_taken_by_what_it_opens() -> None:
    with DaemonProcess(wrapper=("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")) as daemon:
        streams = [Path(f"/proc/{daemon.pid}/fd/{number}").readlink() for number in range(3)]
        assert streams == [Path("/dev/null")] * 3
