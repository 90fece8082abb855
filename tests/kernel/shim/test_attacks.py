"""Published attacks, each by its number, on containers that a shim makes, and on the shim itself."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2

from pyctr_shim.oci import namespaces
from pyctr_sys.namespaces import Clone, setns
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.containerd.types import mount_pb2
from pyctr_wire.errors import ApiError, FailedPrecondition, NotFound
from support.attackers import STARTS, X86_ONLY, elf_interpreter, exchanging, loader, private_interpreter, snapshot
from support.shim_harness import DEADLINE, PROCESS_URL, Host, Running, eventually, host, process

pytestmark = pytest.mark.root
Spec = dict[str, Any]
# Every descriptor that any process of the container has.
DESCRIPTORS = "for fd in /proc/[0-9]*/fd/*; do [ -e $fd ] && echo ${fd##*/}; done"


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host's that no container is given."""
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "ptmx").write_text("kept")
    return directory


def unchanged(_spec: Spec) -> None:
    """Leave a spec as it is."""


def bind(spec: Spec, destination: str, source: Path) -> None:
    item = {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind"]}
    spec["mounts"].append(item)


@contextlib.contextmanager
def shim_for(
    shims: Host, name: str, *arguments: str, change: Callable[[Spec], None] = unchanged, terminal: bool = False
) -> Iterator[Running]:
    """Yield a container that has a shim and is not created yet; in the end both are gone."""
    bundle = shims.container(name, *arguments, terminal=terminal)
    spec = json.loads((bundle / "config.json").read_text())
    change(spec)
    (bundle / "config.json").write_text(json.dumps(spec))
    client, request, shim_pid = shims.shim(name)
    container = Running(shims, name, bundle, client, request, shim_pid, 0)
    try:
        yield container
        with contextlib.suppress(NotFound, FailedPrecondition):
            container.kill(everything=True)
            container.wait()
        with contextlib.suppress(NotFound):
            container.delete()
    finally:
        container.shut_down()
        shutil.rmtree(bundle)


def create(container: Running, rootfs: tuple[mount_pb2.Mount, ...] = (), terminal: bool = False) -> None:
    """Create it, with its output in a file."""
    asked = pb.CreateTaskRequest(
        id=container.id,
        bundle=str(container.bundle),
        terminal=terminal,
        stdout=f"file://{container.bundle}/out",
        rootfs=rootfs,
    )
    container.pid = container.client.call("Create", asked).pid


def outcome(shims: Host, name: str, *arguments: str, **options: Any) -> str:
    """Return what a container prints, or why there is none: under attack, either is right."""
    rootfs = options.pop("rootfs", ())
    with shim_for(shims, name, *arguments, **options) as container:
        try:
            create(container, rootfs, bool(options.get("terminal")))
            container.start()
        except ApiError as error:
            return str(error)
        container.wait()
        container.delete()
        return (container.bundle / "out").read_text()


def exec_outcome(container: Running, name: str, document: Spec) -> str:
    """Return what a process prints that is executed in a container, or why there is none."""
    out = container.bundle / f"out-{name}"
    spec = any_pb2.Any(type_url=PROCESS_URL, value=json.dumps(document).encode())
    asked = pb.ExecProcessRequest(
        id=container.id, exec_id=name, terminal=bool(document["terminal"]), spec=spec, stdout=f"file://{out}"
    )
    container.client.call("Exec", asked)
    try:
        container.start(name)
        container.wait(name)
    except ApiError as error:
        return str(error)
    finally:
        container.delete(name)
    return out.read_text()


# -- containers


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2021_30465_exchanged_targets(shims: Host, tmp_path: Path, outside: Path, starts: int) -> None:
    """A neighbour swaps a directory of a shared volume for a link to the host while mounts and files are made in it."""
    volume, data = tmp_path / "volume", tmp_path / "data"
    (volume / "real/target").mkdir(parents=True)
    (volume / "swap").symlink_to(outside)
    data.mkdir()
    before = snapshot(outside)

    def change(spec: Spec) -> None:
        bind(spec, "/volume", volume)
        bind(spec, "/volume/real/target", data)
        bind(spec, f"/volume/real/new{number}", data)
        spec["process"]["cwd"] = f"/volume/real/work{number}"

    number = starts
    assert outcome(shims, "alone", "pwd", change=change) == f"/volume/real/work{number}\n"
    with exchanging(volume / "real", volume / "swap"):
        for number in range(starts):
            outcome(shims, f"race{number}", "pwd", change=change)

    assert snapshot(outside) == before


@pytest.mark.parametrize("terminal", [False, True])
def test_cve_2026_41579_a_link_at_dev_is_not_followed(
    shims: Host, tmp_path: Path, outside: Path, terminal: bool
) -> None:
    before = snapshot(outside)
    root = tmp_path / "root"
    shutil.copytree(shims.rootfs, root)
    (root / "dev").rmdir()
    (root / "dev").symlink_to(outside)

    def change(spec: Spec) -> None:
        spec["root"]["path"] = str(root)

    refused = outcome(shims, f"devlink{terminal}", "true", change=change, terminal=terminal)

    assert "Too many levels of symbolic links (dev)" in refused
    assert snapshot(outside) == before


def test_cve_2024_9675_parts_of_a_root_are_mounted_inside(shims: Host, tmp_path: Path, outside: Path) -> None:
    """A snapshot of several mounts may name targets that are links in the first of them."""
    before = snapshot(outside)
    image, data = tmp_path / "image", tmp_path / "data"
    shutil.copytree(shims.rootfs, image)
    (image / "link").symlink_to(outside)
    (image / str(outside).lstrip("/")).mkdir(parents=True)
    data.mkdir()
    (data / "part").write_text("")
    rootfs = (
        mount_pb2.Mount(type="bind", source=str(image), options=["rbind", "rw"]),
        mount_pb2.Mount(type="bind", source=str(data), target="link", options=["rbind", "ro"]),
    )

    def change(spec: Spec) -> None:
        spec["root"]["path"] = "rootfs"

    output = outcome(shims, "parts", "sh", "-c", f"cd {outside}; echo *; touch x", change=change, rootfs=rootfs)

    assert output == "part\n"
    assert snapshot(outside) == before


def test_cve_2024_21626_no_directory_through_an_fd(shims: Host) -> None:
    """Neither the image's WORKDIR nor an exec's leads to what the shim has open."""
    for number in range(3, 21):

        def change(spec: Spec, number: int = number) -> None:
            spec["process"]["cwd"] = f"/proc/self/fd/{number}"

        assert "process.cwd" in outcome(shims, f"cwd{number}", "pwd", change=change)
    with shim_for(shims, "cwd", "sleep", "1000") as container:
        create(container)
        container.start()
        for number in range(3, 21):
            for terminal in (False, True):
                document = {**process("pwd", terminal=terminal), "cwd": f"/proc/self/fd/{number}"}
                assert "process.cwd" in exec_outcome(container, f"e{number}{terminal}", document)


def test_cve_2024_21626_only_three_fds(shims: Host) -> None:
    """Neither the first process nor another has any of the shim's, with clients and logs that it has to look after."""
    with shim_for(shims, "fds", "sleep", "1000") as container:
        create(container)
        watcher = container.attach(stdout=True)
        watcher.hello()
        container.start()
        assert exec_outcome(container, "plain", process("sh", "-c", DESCRIPTORS)).split() == ["0", "1", "2"] * 2
        with_terminal = exec_outcome(container, "terminal", process("sh", "-c", DESCRIPTORS, terminal=True))
        # A shell on a terminal keeps that as fd 10.
        assert set(with_terminal.split()) <= {"0", "1", "2", "10"}
        watcher.close()


def test_cve_2022_29162_nothing_is_inheritable(shims: Host) -> None:
    """Also CVE-2022-24769."""
    everything = {kind: ["CAP_CHOWN", "CAP_KILL"] for kind in ("bounding", "effective", "permitted")}
    words = ("grep", "CapInh", "/proc/self/status")

    def change(spec: Spec) -> None:
        spec["process"]["capabilities"] = everything

    assert outcome(shims, "inheritable", *words, change=change).split() == ["CapInh:", "0" * 16]
    with shim_for(shims, "inheriting", "sleep", "1000", change=change) as container:
        create(container)
        container.start()
        for terminal in (False, True):
            document = {**process(*words, terminal=terminal), "capabilities": everything}
            assert exec_outcome(container, f"e{terminal}", document).split() == ["CapInh:", "0" * 16]


def test_cve_2026_30892_uid_1_is_uid_1(shims: Host) -> None:
    with shim_for(shims, "uids", "sleep", "1000") as container:
        create(container)
        container.start()
        for terminal in (False, True):
            document = {**process("id", terminal=terminal), "user": {"uid": 1, "gid": 1}}
            assert exec_outcome(container, f"e{terminal}", document).split() == ["uid=1", "gid=1"]


def test_nothing_is_imported_from_the_container(shims: Host, tmp_path: Path) -> None:
    """A module that the interpreter might look for late is never found in the container."""
    root = tmp_path / "root"
    # Where it runs is the container's root by then, or still the host's.
    evil = f"import os\nopen('/pwned' if not os.path.isdir('{tmp_path}') else '{tmp_path}/pwned', 'w')\n"
    shutil.copytree(shims.rootfs, root)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for place in (*filter(os.path.isdir, sys.path), f"/usr/lib/{version}", "/"):
        directory = root / place.lstrip("/")
        (directory / "encodings").mkdir(parents=True, exist_ok=True)
        for name in ("encodings/__init__.py", "encodings/idna.py", "traceback.py", "codecs.py", "sitecustomize.py"):
            (directory / name).write_text(evil)

    def change(spec: Spec) -> None:
        spec["root"]["path"] = str(root)
        spec["process"]["env"].append("Ä=ö")

    def change_and_fail(spec: Spec) -> None:
        change(spec)
        spec["process"]["args"] = ["nope"]

    assert "nope" in outcome(shims, "hostile", change=change_and_fail)
    with shim_for(shims, "hostility", "sleep", "1000", change=change) as container:
        create(container)
        container.start()
        for number, arguments in enumerate((["/nope"], ["/bin/busybox", "true", "\u20ac"], ["\u20ac"])):
            for terminal in (False, True):
                document = {**process("true", terminal=terminal), "args": arguments, "cwd": "/"}
                exec_outcome(container, f"e{number}{terminal}", document)

    assert not (tmp_path / "pwned").exists()
    assert not (root / "pwned").exists()


# -- the shim


OVERWRITE = """
n=0
while [ $n -lt 500 ]; do
    { echo pwned >/proc/self/fd/9; } 2>/dev/null && break
    n=$((n + 1))
    /bin/busybox usleep 1000
done
echo done >/tried
exec /bin/busybox sleep 1000
"""


@X86_ONLY
def test_cve_2019_5736_the_interpreter_cannot_be_overwritten(tmp_path: Path) -> None:
    """Also not by who waits until zygote and shim have ended, and nobody runs from it any more."""
    interpreter = private_interpreter(tmp_path / "private")
    before = interpreter.read_bytes()
    with host(command=(str(interpreter), "-I", "-m", "pyctr_shim.zygote")) as here:
        linker = here.rootfs / elf_interpreter(interpreter).lstrip("/")
        linker.parent.mkdir(parents=True)
        linker.write_bytes(loader("/bin/sh", "/attack"))
        (here.rootfs / "bin/sh").symlink_to("busybox")
        (here.rootfs / "evil").write_text("#!/proc/self/exe\n")
        (here.rootfs / "attack").write_text(OVERWRITE)
        for path in (linker, here.rootfs / "evil", here.rootfs / "attack"):
            path.chmod(0o755)
        container = here.run("overwriting", "sleep", "1000")
        spec = any_pb2.Any(type_url=PROCESS_URL, value=json.dumps({**process(), "args": ["/evil"]}).encode())
        container.client.call("Exec", pb.ExecProcessRequest(id="overwriting", exec_id="e", spec=spec))
        container.start("e")

        here.requests.close()
        here.zygote.wait()
        os.kill(container.shim_pid, signal.SIGKILL)
        try:
            eventually(lambda: (here.rootfs / "tried").exists(), "the attack is over")
            assert interpreter.read_bytes() == before
        finally:
            command = [sys.executable, "-m", "pyctr_shim", "-namespace", "ns", "-address", "/x", "-id", "overwriting"]
            subprocess.run(
                [*command, "delete"], cwd=container.bundle, capture_output=True, check=True, timeout=2 * DEADLINE
            )
            container.client.close()


def connect_as_root_of_a_user_namespace(path: str) -> str:
    """Return how a socket takes somebody who is 0 where he comes from, and 12345 here."""
    maps = [{"containerID": 0, "hostID": 12345, "size": 1}]
    namespace_fd = namespaces.with_maps(maps, maps)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            setns(namespace_fd, Clone.NEWUSER)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(DEADLINE)
                client.connect(path)
                client.sendall(b"x" * 100)
                os.write(write_fd, b"answered" if client.recv(100) else b"closed")
        except OSError as error:
            os.write(write_fd, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    os.close(namespace_fd)
    with os.fdopen(read_fd, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(pid, 0)
    return said


def test_cve_2020_15257_root_of_a_user_namespace_is_a_stranger(shims: Host) -> None:
    """No socket of the shim's is abstract, and none takes somebody else, even where its mode would let him in."""
    container = shims.run("stranger", "sleep", "1000")
    inodes = set()
    for pid in (shims.zygote.pid, container.shim_pid):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        assert f"socket:[{fields[6]}]" not in inodes or not fields[7:] or fields[7].startswith("/")

    for path in (container.request["socket"], container.request["attach"]):
        assert connect_as_root_of_a_user_namespace(path) == "PermissionError"
        os.chmod(shims.root, 0o755)
        os.chmod(path, 0o777)
        assert connect_as_root_of_a_user_namespace(path) in {"closed", "ConnectionResetError", "BrokenPipeError"}
        os.chmod(shims.root, 0o700)
    container.end()


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("clients", [100, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_cve_2025_64329_attached_clients_leave_nothing(shims: Host, clients: int) -> None:
    """Those that go at once, without a word or in the middle of one; also CVE-2022-23471."""
    container = shims.run(f"attached{clients}", "sleep", "1000")
    first = container.attach(stdout=True)
    first.hello()
    before = open_files(container.shim_pid)

    for number in range(clients):
        client = container.attach(stdout=True, stdin=bool(number % 2))
        if number % 3 == 0:
            client.hello()
        elif number % 3 == 1:
            client.socket.sendall(b"\1\0\0\1")
        client.close()

    eventually(lambda: open_files(container.shim_pid) <= before, "the shim closes what its clients have closed")
    first.close()
    last = container.attach(stdout=True)
    last.hello()
    last.close()
    container.end()


@pytest.mark.parametrize("rounds", [1, pytest.param(200, marks=[pytest.mark.full, pytest.mark.timeout(6000)])])
def test_cve_2026_53495_execs_that_leave_a_child_on_their_output(shims: Host, rounds: int) -> None:
    """A probe's child that keeps its output open holds up neither its end nor, for long, its removal."""
    container = shims.run(f"probes{rounds}", "sleep", "100000")  # each round takes ten seconds
    out = shims.fifo(f"probes-out{rounds}")
    reader_fd = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
    counts = []
    for number in range(rounds):
        names = [f"e{number}-{each}" for each in range(25)]
        for name in names:
            container.exec(name, "sh", "-c", "/bin/busybox sleep 1000 & exit 3", stdout=out)
            container.start(name)
            assert container.wait(name) == 3
        deletes = [container.client.send("Delete", pb.DeleteRequest(id=container.id, exec_id=name)) for name in names]
        assert container.state().status == 2  # other calls are answered meanwhile
        assert {container.client.answer(stream).exit_status for stream in deletes} == {3}
        counts.append(open_files(container.shim_pid))
        for one in container.client.call("Pids", pb.PidsRequest(id=container.id)).processes:
            if one.pid != container.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)
    os.close(reader_fd)
    assert max(counts) < 40, counts
    container.end()
