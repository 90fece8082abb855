"""F31: an OCI runtime's program hangs, crashes, lies, prints without end or is not there; nothing of it is left.

The programs are small scripts that do just that, some of them a real runtime but for one command.
"""

import contextlib
import os
import select
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_sys.mount import MNT_DETACH, mount, umount2
from pyctr_wire.containerd.runtime.task.v3 import shim_pb2 as pb
from pyctr_wire.errors import NotFound, UnknownError
from support import runtimes
from support.shim_harness import DEADLINE, Host, Running, eventually, host

pytestmark = pytest.mark.root

_LONGEST = 6000  # characters of an error
_SECONDS = 2.0  # that a command may take here


@pytest.fixture(scope="module")
def shims() -> Iterator[Host]:
    with host() as here:
        yield here


@pytest.fixture
def mark() -> Iterator[str]:
    """A number that the scripts' processes sleep for, by which they are found; afterwards there are none."""
    seconds = str(10**8 + uuid.uuid4().int % 10**8)
    yield seconds
    eventually(lambda: not sleepers(seconds), "the runtime's processes have ended")


def sleepers(seconds: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if seconds in (folder / "cmdline").read_text():
                found.append(folder.name)
        except OSError:
            continue
    return found


def script(folder: Path, text: str) -> str:
    path = folder / "fake-runtime"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def real_but(folder: Path, verb: str, text: str) -> str:
    """Return a runtime that is runc but for one command."""
    return script(
        folder, f'for word; do if [ "$word" = {verb} ]; then {text}; fi; done\nexec {runtimes.path_of("runc")} "$@"'
    )


# What it does, and what the client reads of it. $F is the pid file, $L the log.
_OPTIONS = "while [ $# -gt 0 ]; do case $1 in --pid-file) F=$2;; --log) L=$2;; esac; shift; done"
CREATIONS = {
    "hangs": ("sleep $MARK", "no end after 0.7 s: killed"),
    "hangs with children": ("sleep $MARK & (sleep $MARK) ; wait", "no end after 0.7 s: killed"),
    "ignores signals": ("trap '' TERM INT HUP; while :; do sleep $MARK; done", "no end after 0.7 s: killed"),
    "crashes": ("kill -SEGV $$", "killed by signal 11"),
    "fails without a word": ("exit 3", "exit status 3"),
    "fails with a reason": (
        'echo \'{"level":"info","msg":"so"}\' >$L; echo \'{"level":"error","msg":"no such kernel"}\' >>$L; exit 1',
        "no such kernel",
    ),
    "makes nothing": ("exit 0", "exit status 0, and no process"),
    "writes rubbish for a pid": ("echo twelve >$F", "exit status 0, and no process"),
    "names init for its process": ("echo -n 1 >$F", "process 1 is none of its making"),
    "names no process at all": ("echo -n 4194303 >$F", "process 4194303 is none of its making"),
    "names a number too large": ("echo -n 99999999999999999999 >$F", "is none of its making"),
    "prints 10 MB": ("head -c 10000000 /dev/zero | tr '\\0' x; exit 1", "exit status 1"),
    "logs 10 MB": (
        'head -c 10000000 /dev/zero | tr "\\0" "\\n" >$L; echo \'{"level":"error","msg":"at last"}\' >>$L; exit 1',
        "at last",
    ),
    "logs one line of 10 MB": (
        'echo -n \'{"level":"error","msg":"\' >$L; head -c 10000000 /dev/zero | tr "\\0" x >>$L; echo \'"}\' >>$L; '
        "exit 1",
        "exit status 1",
    ),
    "is no program": (None, "Exec format error"),
}


@pytest.mark.parametrize("what", CREATIONS)
def test_a_creation_that_fails(shims: Host, tmp_path: Path, mark: str, what: str) -> None:
    """The client reads why, and can try again with the same id at once: nothing of the attempt is left."""
    text, expected = CREATIONS[what]
    program = script(tmp_path, f"{_OPTIONS}\nMARK={mark}\n{text}" if text else "")
    if text is None:
        Path(program).write_bytes(b"\x7fELF, but no more of one")
    id = what.replace(" ", "-")
    before = time.monotonic()
    with pytest.raises(UnknownError) as failed:
        shims.create(id, "sleep", "1000", runtime=runtimes.options(program, 0.7))
    assert time.monotonic() - before < DEADLINE
    assert str(failed.value).startswith("OCI runtime create failed: ")
    assert expected in str(failed.value)
    assert len(str(failed.value)) < _LONGEST
    assert nothing_left(shims, id)


def test_a_program_that_is_missing(shims: Host) -> None:
    with pytest.raises(UnknownError, match=r"OCI runtime create failed: .*/no/such/runtime"):
        shims.create("missing", "sleep", "1000", runtime=runtimes.options("/no/such/runtime"))
    assert nothing_left(shims, "missing")


WAYS = {"hangs": "sleep $MARK", "crashes": "kill -SEGV $$", "prints": "head -c 10000000 /dev/zero | tr '\\0' x; exit 1"}
_TYPICAL = {("start", "hangs"), ("exec", "prints"), ("exec", "hangs"), ("kill", "crashes"), ("delete", "hangs")}


@pytest.mark.parametrize(
    ("verb", "way"),
    [
        pytest.param(verb, way, marks=[] if (verb, way) in _TYPICAL else pytest.mark.full)
        for verb in ("start", "exec", "pause", "update", "kill", "delete")
        for way in WAYS
    ],
)
def test_a_later_command_that_fails(shims: Host, tmp_path: Path, mark: str, verb: str, way: str) -> None:
    """It costs one call with an error; the container runs on, takes SIGKILL, and can be deleted."""
    program = real_but(tmp_path, verb, f"MARK={mark}; {WAYS[way]}")
    id = f"{verb}-{way}"
    container = shims.create(id, "sleep", "1000", runtime=runtimes.options(program, _SECONDS))
    if verb != "delete":
        if verb != "start":
            container.start()
        if verb == "exec":
            container.exec("e", "true")
        with pytest.raises(UnknownError) as failed:
            call(container, verb)
        assert len(str(failed.value)) < _LONGEST
        assert container.state().status == (1 if verb == "start" else 2)
    container.kill(signal.SIGKILL)
    assert container.wait() == 137
    container.delete()
    container.shut_down()
    assert nothing_left(shims, id)


def test_output_moves_while_a_command_hangs(shims: Host, tmp_path: Path, mark: str) -> None:
    """I1: what the container writes does not wait for its runtime."""
    program = real_but(tmp_path, "exec", f"sleep {mark}")
    log = tmp_path / "log"
    container = shims.run(
        "moving", "sh", "-c", "while :; do echo tick; /bin/busybox sleep 0.01; done",
        stdio={"stdout": f"file://{log}"}, runtime=runtimes.options(program, 30),
    )  # fmt: skip
    container.exec("e", "true")
    container.client.send("Start", pb.StartRequest(id="moving", exec_id="e"))
    eventually(lambda: sleepers(mark), "the exec hangs")
    size = log.stat().st_size
    eventually(lambda: log.stat().st_size > size + 50, "output goes on")
    assert container.state().status == 2
    for pid in sleepers(mark):
        os.kill(int(pid), signal.SIGKILL)
    container.end()


def test_a_full_disk_is_told_of(shims: Host, tmp_path: Path) -> None:
    """F15: an exec needs a file for the runtime to read; the container runs on, and with room the next one works."""
    bundle = shims.bundle("full")
    mount("tmpfs", str(bundle), "tmpfs", 0, "size=128k")
    try:
        shutil.rmtree(shims.container("template", "sleep", "1000") / "rootfs")
        (bundle / "config.json").write_bytes((bundle.parent / "template/config.json").read_bytes())
        client, request, shim_pid = shims.shim("full")
        options = runtimes.options(runtimes.path_of("runc"), root=str(tmp_path / "states"))
        pid = client.call("Create", pb.CreateTaskRequest(id="full", bundle=str(bundle), options=options)).pid
        container = Running(shims, "full", bundle, client, request, shim_pid, pid)
        container.start()
        container.exec("e", "true")
        with contextlib.suppress(OSError), (bundle / "filler").open("wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
        with pytest.raises(UnknownError, match=r"OCI runtime exec failed: .*No space left on device"):
            container.start("e")
        assert container.state().status == 2
        (bundle / "filler").unlink()
        container.start("e")
        assert container.wait("e") == 0
        container.end()
    finally:
        umount2(str(bundle), MNT_DETACH)


def test_what_a_caller_began_is_gone_through_with(shims: Host, tmp_path: Path) -> None:
    """F36: its connection closes while the runtime works; the container is there for whoever asks next."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    program = real_but(tmp_path, "create", f"read x <{gate}")
    bundle = shims.container("abandoned", "sleep", "1000")
    client, request, shim_pid = shims.shim("abandoned")
    options = runtimes.options(program, 30)
    client.send("Create", pb.CreateTaskRequest(id="abandoned", bundle=str(bundle), options=options))
    with gate.open("w") as file:  # the runtime has been started
        client.close()
        file.write("go on\n")
    container = Running(shims, "abandoned", bundle, shims.connect(request), request, shim_pid, 0)
    eventually(lambda: exists(container), "the container is there")
    assert container.state().status == 1
    container.start()
    container.end()
    assert nothing_left(shims, "abandoned")


def exists(container: Running) -> bool:
    try:
        return bool(container.state().pid)
    except NotFound:
        return False


def test_a_shim_that_is_killed_takes_its_command_along(shims: Host, tmp_path: Path, mark: str) -> None:
    """F08: nobody makes the container behind the back of who buries it."""
    program = script(tmp_path, f"sleep {mark}")
    bundle = shims.container("orphaned", "sleep", "1000")
    client, _request, shim_pid = shims.shim("orphaned")
    client.send(
        "Create", pb.CreateTaskRequest(id="orphaned", bundle=str(bundle), options=runtimes.options(program, 30))
    )
    eventually(lambda: [pid for pid in sleepers(mark) if runs(pid, "sleep")], "the runtime hangs")
    shell = next(pid for pid in sleepers(mark) if runs(pid, "sleep"))
    parent = int(Path(f"/proc/{shell}/stat").read_text().rpartition(")")[2].split()[1])
    pidfd = os.pidfd_open(parent)
    os.kill(shim_pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)
    client.close()
    for pid in sleepers(mark):  # a shell's child is nobody's: that is this script's doing, not a runtime's
        os.kill(int(pid), signal.SIGKILL)


def runs(pid: str, name: str) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    except OSError:
        return False


def call(container: Running, verb: str) -> None:
    id, client = container.id, container.client
    match verb:
        case "start":
            container.start()
        case "exec":
            container.start("e")
        case "pause":
            client.call("Pause", pb.PauseRequest(id=id))
        case "update":
            client.call("Update", pb.UpdateTaskRequest(id=id))
        case "kill":
            container.kill(signal.SIGTERM)


def nothing_left(shims: Host, id: str) -> bool:
    bundle = shims.root / "tasks" / "ns" / id
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(bundle) in line]
    assert list(Path("/sys/fs/cgroup").glob(f"*/{shims.group}/{id}")) == []
    assert list(bundle.glob(".*")) == []
    assert not any((bundle / "runtime").glob("*"))
    return True
