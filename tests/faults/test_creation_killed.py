"""F01 for `pyctr create`: the daemon is killed in each thread's steps; what it held for the call goes with it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.daemon_process import wait_until
from support.pyctr_command import Pyctr
from support.tracing import KillAt, needs_strace

pytestmark = [pytest.mark.root, needs_strace]

PROGRAMS = ("sleep",)
_FEW = [("fdatasync", 2), ("mkdir", 3)]
_STEPS = [
    *_FEW,
    *(
        pytest.param(name, nth, marks=pytest.mark.full)
        for name, most in (("fdatasync", 4), ("mkdir", 8))
        for nth in range(1, most + 1)
        if (name, nth) not in _FEW
    ),
]


@pytest.fixture(autouse=True)
def _nothing_held(pyctr: Pyctr) -> Iterator[None]:
    """No lease and no snapshot of a container is left, soon after the containers are gone."""
    yield
    for container in pyctr("ps", "-aq", "--no-trunc").split():
        pyctr("rm", "-f", container)
    assert pyctr("lease", "ls", "--format", "{{.ID}}").split() == []
    wait_until(lambda: set(pyctr("snapshot", "ls", "--format", "{{.Kind}}").split()) == {"committed"}, "they are gone")


@pytest.mark.parametrize(("name", "nth"), _STEPS)
def test_it_can_be_made_again(pyctr: Pyctr, name: str, nth: int) -> None:
    arguments = (
        "create",
        "--network",
        "none",
        "--name",
        "web",
        "-v",
        "/data",
        "-v",
        "named:/named",
        "demo",
        "sleep",
        "9",
    )
    with ExitStack() as killing:
        killing.enter_context(KillAt(pyctr.daemon.pid, name, nth, any_thread=True))
        answered = pyctr.run(*arguments).returncode == 0
        if answered:
            pyctr.daemon.kill()
        else:
            assert pyctr.daemon.wait_ended() == -9
    pyctr.daemon.start()

    names = pyctr("ps", "-a", "--format", "{{.Names}}").split()
    assert names in ([], ["web"])
    assert names or not answered
    if not names:
        pyctr(*arguments)
