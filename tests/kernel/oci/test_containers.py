"""A container's life, as a caller of the runtime sees it."""

import json
import os
import signal
from pathlib import Path

import pytest

from pyctr_shim.oci import runtime, state
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import NAMESPACES, Lab, eventually, process, read_all, wait

pytestmark = pytest.mark.root


def leftovers(lab: Lab) -> list[str]:
    """Return the cgroups of a lab that still exist."""
    found = []
    for mount_point in {*mounted().controllers.values(), mounted().unified} - {""}:
        directory = mount_point + lab.cgroup
        if os.path.isdir(directory):
            found += [entry.path for entry in os.scandir(directory) if entry.is_dir()]
    return found


def test_runs_a_program_and_leaves_nothing(lab: Lab) -> None:
    before = sorted(os.listdir("/proc/self/fd"))

    ended = lab.run(lab.spec("sh", "-c", "echo hello; exit 7"))

    assert (ended.status, ended.output) == (7, "hello\n")
    assert leftovers(lab) == []
    assert not (lab.base / "b1" / state.NAME).exists()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_the_program_runs_at_start_not_before(lab: Lab) -> None:
    spec = lab.spec("touch", "/tmp/ran")
    container = lab.create(spec)
    marker = Path(container.bundle) / "rootfs/tmp/ran"
    assert not marker.exists()

    container.start()

    assert wait(container.pidfd) == 0
    assert marker.exists()


def test_a_created_container_holds_its_namespaces(lab: Lab) -> None:
    container = lab.create(lab.spec("true"))

    for kind, name in zip(NAMESPACES, ("pid", "ipc", "uts", "mnt", "net"), strict=True):
        theirs = os.readlink(f"/proc/{container.pid}/ns/{name}")
        assert theirs != os.readlink(f"/proc/self/ns/{name}"), kind


def test_init_ends_with_whoever_created_it(lab: Lab) -> None:
    """A shim that dies before start leaves no process that waits for ever."""
    container = lab.create(lab.spec("sleep", "1000"))
    assert container.waiting is not None

    container.waiting.close()

    assert wait(container.pidfd) == 1


@pytest.mark.parametrize(
    ("program", "text", "number"),
    [
        ("nope", 'exec: "nope": executable file not found in $PATH', 2),
        ("/nope", 'exec: "/nope": stat /nope: no such file or directory', 2),
        ("/etc", 'exec: "/etc": is a directory', 21),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied', 13),
    ],
)
def test_a_missing_program_is_named(lab: Lab, program: str, text: str, number: int) -> None:
    with pytest.raises(OciError) as caught:
        lab.create(lab.spec(program))

    assert text in str(caught.value)
    assert caught.value.errno == number
    assert leftovers(lab) == []


def test_an_interpreter_that_is_missing_shows_at_start(lab: Lab) -> None:
    spec = lab.spec("/bin/script")
    bundle = lab.bundle(spec)
    script = bundle / "rootfs/bin/script"
    script.write_text("#!/nowhere\n")
    script.chmod(0o755)
    container = lab.create(spec, bundle=bundle)

    with pytest.raises(OciError, match="exec /bin/script: no such file or directory"):
        container.start()

    assert wait(container.pidfd) == 1


def test_a_failed_creation_is_undone(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})

    with pytest.raises(OciError, match='error mounting "x" to rootfs at "/x"'):
        lab.create(spec)

    assert leftovers(lab) == []
    assert not (lab.base / "b1" / state.NAME).exists()


def test_kill_and_delete(lab: Lab) -> None:
    container = lab.running()

    container.kill(signal.SIGTERM)  # pid 1 ignores what it has no handler for
    container.kill(signal.SIGKILL)

    assert wait(container.pidfd) == 137
    with pytest.raises(ProcessLookupError):
        container.kill(signal.SIGKILL)


def test_deleting_twice_is_harmless(lab: Lab) -> None:
    container = lab.running()
    lab.remove(container)

    container.delete()


def test_delete_refuses_a_running_container(lab: Lab) -> None:
    container = lab.running()

    with pytest.raises(OciError, match="cannot be removed"):
        container.delete()

    assert state.read(container.state_directory).pid == container.pid


def test_pids_pause_resume(lab: Lab) -> None:
    container = lab.running()
    assert container.pids() == [container.pid]

    container.pause()
    assert container.cgroup.is_paused()
    with pytest.raises(OciError, match="paused"):
        container.exec(json.dumps(process("true")).encode(), runtime.Stdio(0, 1, 2))
    container.resume()

    assert not container.cgroup.is_paused()
    assert lab.exec(container, process("true")).status == 0


def test_a_paused_container_can_be_killed(lab: Lab) -> None:
    container = lab.running()
    container.pause()

    container.kill(signal.SIGKILL)

    assert wait(container.pidfd) == 137


def test_kill_all_reaches_what_init_left(lab: Lab) -> None:
    """Without a PID namespace of its own, nothing ends a container's other processes."""
    spec = lab.spec("sh", "-c", "sleep 1000 & sleep 1000 & exec sleep 1000")
    spec["linux"]["namespaces"] = [item for item in spec["linux"]["namespaces"] if item["type"] != "pid"]
    container = lab.running(spec)
    eventually(lambda: len(container.pids()) == 3)

    container.kill_all(signal.SIGKILL)

    assert wait(container.pidfd) == 137
    eventually(lambda: container.pids() == [])


def test_a_container_is_found_again_from_its_state(lab: Lab) -> None:
    container = lab.running()

    found = runtime.load(container.state_directory)

    try:
        assert (found.pid, found.pids(), found.own_pid_namespace) == (container.pid, [container.pid], True)
        assert lab.exec(found, process("echo", "again")).output == "again\n"
    finally:
        os.close(found.pidfd)


def test_signals_that_the_interpreter_ignores_are_reset(lab: Lab) -> None:
    ended = lab.run(lab.spec("grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"))

    assert ended.output.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_a_terminal(lab: Lab) -> None:
    spec = lab.spec("sh", "-c", "[ -t 0 ] && cat /proc/self/stat >/dev/tty; ls -l /dev/console; stat -c %t:%T /dev/tty")
    spec["process"]["terminal"] = True
    spec["process"]["consoleSize"] = {"height": 30, "width": 100}
    container = lab.create(spec)
    assert container.console_fd is not None
    assert os.get_terminal_size(container.console_fd) == (100, 30)

    container.start()
    output = read_all(container.console_fd)

    assert wait(container.pidfd) == 0
    assert "/dev/console" in output
    assert output.strip().endswith("5:0")


def test_one_that_ends_while_it_is_loaded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    container = lab.running(lab.spec("true"))
    wait(container.pidfd)
    monkeypatch.setattr(state.State, "is_alive", lambda _: True)  # as it was a moment ago

    assert runtime.load(container.state_directory).pidfd == -1
