"""Pods as a kubelet looks after them, by its calls: they live, die, and outlive whoever looks after them."""

import uuid
from collections.abc import Iterator

import pytest

from support import images
from support.cri_client import CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.scripted_kubelet import Manifest, ScriptedKubelet

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

_SECONDS = 90.0
_COUNT = ("sh", "-c", "trap 'exit 0' TERM; i=0; while :; do echo $((i += 1)); sleep 0.05; done")
_SLEEP = ("sh", "-c", "trap 'exit 0' TERM; touch /healthy; while :; do sleep 0.1; done")


@pytest.fixture(params=["lists", pytest.param("events", marks=pytest.mark.full)])
def kubelet(request: pytest.FixtureRequest, cri: CriClient) -> Iterator[ScriptedKubelet]:
    """One that removes its pods in the end, and has seen no call fail."""
    with ScriptedKubelet(cri, evented=request.param == "events") as kubelet:
        yield kubelet
        for name in list(kubelet.seen):
            kubelet.withdraw(name)
        wait_until(lambda: not cri.pods(), f"its pods are removed: {kubelet.errors}", _SECONDS)


def run(kubelet: ScriptedKubelet, *command: str, **more: object) -> str:
    """Have a pod run, wait until it does and return its name."""
    name = f"pod-{uuid.uuid4().hex[:8]}"
    kubelet.add(Manifest(name, command, **more))  # type: ignore[arg-type]
    wait_until(lambda: name in kubelet.seen, f"{name} is made: {kubelet.errors}", _SECONDS)
    return name


def until_restarted(kubelet: ScriptedKubelet, name: str, times: int = 1) -> None:
    wait_until(
        lambda: kubelet.restarts(name) >= times and bool(kubelet.running(name)),
        f"{name} runs again: {kubelet.errors}",
        _SECONDS,
    )


def test_containers_that_end_run_again(kubelet: ScriptedKubelet, cri: CriClient) -> None:
    """By themselves, out of memory, and killed because a probe fails, each with what it died of."""
    failing = run(kubelet, "sh", "-c", "sleep 1; exit 3")
    greedy = run(kubelet, "tail", "/dev/zero", limit=24 << 20)
    probed = run(kubelet, *_SLEEP, probe=("cat", "/healthy"))
    wait_until(lambda: bool(kubelet.running(probed)), "the probed one runs", _SECONDS)
    cri.exec(kubelet.running(probed), "rm", "/healthy")
    until_restarted(kubelet, probed)
    ended = kubelet.before_last(probed)
    assert (ended.exit_code, ended.reason) == (0, "Completed")
    for name, code, reason in ((failing, 3, "Error"), (greedy, 137, "OOMKilled")):
        wait_until(lambda name=name: kubelet.restarts(name) >= 2, f"{name} was tried again", _SECONDS)  # type: ignore[misc]
        ended = kubelet.before_last(name)
        assert (ended.exit_code, ended.reason) == (code, reason)
    wait_until(lambda: len(kubelet.seen[failing].containers) <= 3, "dead containers are collected", _SECONDS)


@pytest.mark.parametrize("what", ["killed", "upgraded", "kubelet"])
def test_pods_outlive_whoever_looks_after_them(
    kubelet: ScriptedKubelet, cri: CriClient, daemon: DaemonProcess, what: str
) -> None:
    name = run(kubelet, *_COUNT, probe=("true",))
    wait_until(lambda: bool(kubelet.running(name)), "it runs", _SECONDS)
    container, seen = kubelet.running(name), len(cri.log(f"{name}_0").splitlines())
    if what == "killed":
        daemon.restart()
    elif what == "upgraded":
        daemon.upgrade()
    else:
        kubelet.restart()
    other = run(kubelet, *_SLEEP)
    wait_until(lambda: bool(kubelet.running(other)), "others are made", _SECONDS)
    wait_until(lambda: kubelet.running(name) == container, "it is the same", _SECONDS)
    kubelet.rotate_log(name)
    wait_until(lambda: len(cri.log(f"{name}_0").splitlines()) > 2, "it writes into the new log", _SECONDS)
    lines = (cri.logs / f"{name}_0.log.old").read_text().splitlines() + cri.log(f"{name}_0").splitlines()
    assert [line.split()[-1] for line in lines] == [str(number + 1) for number in range(len(lines))]
    assert len(lines) > seen
    assert kubelet.restarts(name) == 0
    if what != "killed":
        assert kubelet.unanswered == 0


def test_one_that_dies_while_nobody_looks(kubelet: ScriptedKubelet, cri: CriClient, daemon: DaemonProcess) -> None:
    name = run(kubelet, "sh", "-c", "until [ -e /dev/shm/end ]; do sleep 0.05; done; rm /dev/shm/end; exit 9")
    wait_until(lambda: bool(kubelet.running(name)), "it runs", _SECONDS)
    shm = daemon.base / "state" / "pods" / kubelet.seen[name].sandbox.id / "shm"
    daemon.kill()
    (shm / "end").touch()
    wait_until(lambda: not (shm / "end").exists(), "it has ended", _SECONDS)
    daemon.start()
    until_restarted(kubelet, name)
    assert kubelet.before_last(name).exit_code == 9


def test_images_that_nobody_uses_are_removed(kubelet: ScriptedKubelet, cri: CriClient) -> None:
    name = f"registry.test/unused-{uuid.uuid4().hex[:8]}:latest"
    run(kubelet, *_SLEEP)
    cri.bring(name, images.busybox(Labels={"unused": uuid.uuid4().hex}))
    wait_until(lambda: name not in cri.daemon.ctr("images", "ls", "-q", namespace="k8s.io"), "it is removed", _SECONDS)
