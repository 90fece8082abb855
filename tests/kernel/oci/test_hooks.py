"""Hooks: when they run, where, with what, and what happens when one fails."""

import json
import os
from pathlib import Path
from threading import Thread

import pytest

from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import RootfsMount
from support.oci_bundle import Lab, Spec, is_mounted, make_root, wait

pytestmark = pytest.mark.root
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


@pytest.fixture
def record(lab: Lab) -> Path:
    """A program on the host that appends its argument, its state and where it is to a file."""
    program = lab.base / "hook"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s %s %s %s\\n" "$1" "$(readlink /proc/self/ns/net)" "$FROM_SPEC" "$(cat)" >>{lab.base}/log\n'
    )
    program.chmod(0o755)
    return program


def log(lab: Lab) -> list[tuple[str, str, str, Spec]]:
    lines = (lab.base / "log").read_text().splitlines()
    parts = [line.split(" ", 3) for line in lines]
    return [(kind, net, value, json.loads(state)) for kind, net, value, state in parts]


def test_every_hook_runs_in_its_order_and_place(lab: Lab, record: Path) -> None:
    spec = lab.spec("true")
    spec["annotations"] = {"a": "b"}
    spec["hooks"] = {
        kind: [{"path": str(record), "args": ["hook", kind], "env": ["FROM_SPEC=yes", "PATH=/bin:/usr/bin"]}]
        for kind in KINDS
        if kind != "startContainer"
    }
    # This one is the container's program, in the container's root.
    spec["hooks"]["startContainer"] = [{"path": "/bin/touch", "args": ["touch", "/started"]}]
    bundle = lab.bundle(spec)
    container = lab.create(spec, bundle=bundle)
    theirs, ours = os.readlink(f"/proc/{container.pid}/ns/net"), os.readlink("/proc/self/ns/net")
    assert not (bundle / "rootfs/started").exists()

    container.start()
    assert (bundle / "rootfs/started").exists()
    wait(container.pidfd)
    pid = container.pid
    lab.remove(container)

    found = log(lab)
    assert [item[0] for item in found] == [kind for kind in KINDS if kind != "startContainer"]
    assert [item[1] for item in found] == [ours, ours, theirs, ours, ours]
    assert {item[2] for item in found} == {"yes"}
    statuses = [item[3]["status"] for item in found]
    assert statuses == ["creating", "creating", "creating", "running", "stopped"]
    first = found[0][3]
    assert (first["id"], first["pid"], first["bundle"], first["annotations"]) == (
        bundle.name,
        pid,
        str(bundle),
        {"a": "b"},
    )


def test_early_hooks_see_the_root_on_the_host(lab: Lab) -> None:
    """They expect it mounted below the bundle; it is gone again after delete."""
    root = make_root(lab.base / "elsewhere")
    spec = lab.spec("true")
    spec["hooks"] = {"createRuntime": [{"path": "/bin/cp", "args": ["cp", "/bin/busybox", "ROOTFS/bin/from-hook"]}]}
    bundle = lab.bundle(spec, root=False)
    spec["hooks"]["createRuntime"][0]["args"][2] = f"{bundle}/rootfs/bin/from-hook"
    (bundle / "config.json").write_text(json.dumps(spec))
    container = lab.create(spec, bundle=bundle, rootfs=(RootfsMount("bind", str(root), "", ("rbind", "rw")),))
    assert is_mounted(bundle / "rootfs")

    lab.remove(container)

    assert not is_mounted(bundle / "rootfs")
    assert (root / "bin/from-hook").exists()


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_an_early_hook_that_fails_stops_the_creation(lab: Lab, kind: str) -> None:
    spec = lab.spec("true")
    spec["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"], "env": ["PATH=/bin"]}]}

    with pytest.raises(OciError, match=rf"error running hooks.{kind}\[0\] /bin/sh: exit status 3, output: why"):
        lab.create(spec)


def test_a_hook_that_hangs_is_ended(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["hooks"] = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}

    with pytest.raises(OciError, match=r"hooks.createRuntime\[0\] /bin/sleep: not done after 1 s"):
        lab.create(spec)


def test_a_poststop_hook_that_fails_is_told_after_everything_is_gone(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["hooks"] = {"poststop": [{"path": "/nowhere"}]}
    container = lab.running(spec)
    wait(container.pidfd)

    with pytest.raises(OciError, match=r"hooks.poststop\[0\] /nowhere"):
        lab.remove(container)

    assert not (Path(container.bundle) / "state.json").exists()


def test_a_poststop_hook_that_fails_keeps_none_from_running(lab: Lab, record: Path) -> None:
    spec = lab.spec("true")
    second = {"path": str(record), "args": ["hook", "second"], "env": ["FROM_SPEC=yes", "PATH=/bin:/usr/bin"]}
    spec["hooks"] = {"poststop": [{"path": "/nowhere"}, second]}
    container = lab.running(spec)
    wait(container.pidfd)

    with pytest.raises(OciError, match=r"hooks.poststop\[0\] /nowhere"):
        lab.remove(container)

    assert [item[0] for item in log(lab)] == ["second"]


def test_a_poststart_hook_that_fails_ends_the_container(lab: Lab) -> None:
    spec = lab.spec("sleep", "1000")
    spec["hooks"] = {"poststart": [{"path": "/bin/false"}]}
    container = lab.create(spec)

    with pytest.raises(OciError, match=r"hooks.poststart\[0\] /bin/false: exit status 1"):
        container.start()

    assert wait(container.pidfd) == 137


def test_so_it_is_told_where_that_has_ended_meanwhile(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["hooks"] = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.5; exit 1"]}]}
    container = lab.create(spec)
    reaper = Thread(target=wait, args=(container.pidfd,))
    reaper.start()

    with pytest.raises(OciError, match=r"hooks.poststart\[0\] /bin/sh: exit status 1"):
        container.start()

    reaper.join()
