"""Whoever dies at whatever step, nothing is left: no process, cgroup, mount or state."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyctr_shim.oci import in_place, init, lockdown, runtime, state
from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import Lab, Spec, eventually, is_mounted, make_root, wait, with_namespaces

pytestmark = pytest.mark.root
STEPS = range(len(init._STEPS))
IN_NAMESPACES = ("mount_everything", "hide", "pivot")
IN_PLACE = ("write_state", "make_cgroup", "open_sources", "prepare_root", *IN_NAMESPACES)


def specs(lab: Lab, kind: str) -> Spec:
    """Return a spec that takes the short way, or the one with a stager, or one with a root on the host."""
    spec = lab.spec("true")
    if kind == "stager":
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["linux"]["uidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1000}]
        spec["linux"]["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1000}]
    elif kind == "host's mounts":
        with_namespaces(spec, mount=None)
    elif kind == "host mount":
        spec["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    return spec


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, what: Callable[[], None]) -> None:
    """Have the child do something right before one of its steps."""

    def step(build: init.Build) -> None:
        what()
        steps[number](build)

    monkeypatch.setattr(in_place, "suits", lambda _request: False)
    steps = init._STEPS
    monkeypatch.setattr(init, "_STEPS", (*steps[:number], step, *steps[number + 1 :]))


def assert_nothing_left(lab: Lab, bundle: Path) -> None:
    for mount_point in {*mounted().controllers.values(), mounted().unified} - {""}:
        directory = mount_point + lab.cgroup
        assert not os.path.isdir(directory) or not [entry for entry in os.scandir(directory) if entry.is_dir()]
    assert not is_mounted(bundle / "rootfs")
    assert not (bundle / "attached").exists()
    assert not (bundle / state.NAME).exists()


@pytest.mark.parametrize("kind", ["plain", "stager", "host mount", "host's mounts"])
@pytest.mark.parametrize("number", STEPS)
def test_the_child_dies(lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    spec = specs(lab, kind)
    root = make_root(lab.base / "elsewhere")
    bundle = lab.bundle(spec, root=False)
    interrupt(monkeypatch, number, lambda: os._exit(1))  # pid 1 cannot kill itself

    with pytest.raises(OciError, match=r"ended without a word"):
        lab.create(spec, bundle=bundle, rootfs=(runtime.RootfsMount("bind", str(root), "", ("rbind", "rw")),))

    assert_nothing_left(lab, bundle)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("kind", ["plain", "stager", "host mount", "host's mounts"])
@pytest.mark.parametrize("number", STEPS)
def test_the_parent_dies(lab: Lab, monkeypatch: pytest.MonkeyPatch, number: int, kind: str) -> None:
    """The child ends with it, and what state.json names is all there is to remove."""
    spec = specs(lab, kind)
    root = make_root(lab.base / "elsewhere")
    bundle = lab.bundle(spec, root=False)
    told_fd, tell_fd = os.pipe()
    held_fd, hold_fd = os.pipe()
    monkeypatch.setattr(lockdown, "close_range", lambda *_: None)  # the pipes stay open in the child

    def pause() -> None:
        os.close(hold_fd)
        os.write(tell_fd, b"x")
        os.read(held_fd, 1)

    interrupt(monkeypatch, number, pause)
    parent = os.fork()
    if parent == 0:
        os.close(told_fd)
        with open("/dev/null", "r+b") as null:
            stdio = runtime.Stdio(null.fileno(), null.fileno(), null.fileno())
            mount = runtime.RootfsMount("bind", str(root), "", ("rbind", "rw"))
            runtime.create(bundle.name, str(bundle), stdio, runtime.CreateOptions(rootfs=(mount,)))
        os._exit(0)
    os.close(tell_fd)
    assert os.read(told_fd, 1) == b"x"
    os.close(told_fd)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    os.close(hold_fd)
    os.close(held_fd)

    _bury(bundle)

    assert_nothing_left(lab, bundle)


@pytest.mark.parametrize("after", IN_PLACE)
def test_who_makes_it_in_place_dies(lab: Lab, after: str) -> None:
    """The stub ends with it, and what state.json names is all there is to remove."""
    root = make_root(lab.base / "elsewhere")
    bundle = lab.bundle(lab.spec("true"), root=False)
    real = getattr(init, after)

    def die(*arguments: object) -> None:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    parent = os.fork()
    if parent == 0:
        setattr(init, after, die)
        with open("/dev/null", "r+b") as null:
            stdio = runtime.Stdio(null.fileno(), null.fileno(), null.fileno())
            mount = runtime.RootfsMount("bind", str(root), "", ("rbind", "rw"))
            runtime.create(bundle.name, str(bundle), stdio, runtime.CreateOptions(rootfs=(mount,)))
        os._exit(0)
    _pid, status = os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL

    _bury(bundle)

    assert_nothing_left(lab, bundle)


@pytest.mark.parametrize("at", IN_PLACE)
def test_what_goes_wrong_in_place_is_undone(lab: Lab, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(5, "no such luck")

    bundle = lab.bundle(lab.spec("true"))
    before = sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.getcwd(), sys.meta_path[:]
    monkeypatch.setattr(init, at, refuse)

    if at in IN_NAMESPACES:  # where it is no verdict: the fork, whose steps are what they were, has the last word
        lab.remove(lab.create(lab.spec("true"), bundle=bundle))
    else:
        with pytest.raises(OciError, match="no such luck"):
            lab.create(lab.spec("true"), bundle=bundle)

    assert_nothing_left(lab, bundle)
    assert (sorted(os.listdir("/proc/self/fd")), os.readlink("/proc/self/ns/mnt"), os.getcwd(), sys.meta_path) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _bury(bundle: Path) -> None:
    """Do what is done about a shim that is gone: end the child, remove what the state names."""
    try:
        container = runtime.load(str(bundle))
    except FileNotFoundError:
        return  # it died before it made anything
    if container.pidfd >= 0:
        with suppress(ProcessLookupError):  # it dies of its maker's end, at about this time
            container.kill(signal.SIGKILL)
        wait(container.pidfd)
    container.kill_all(signal.SIGKILL)
    eventually(lambda: container.pids() == [])
    container.delete()
