"""`pyctr` as careless users and scripts call it: each mistake is answered, and nothing is left of it."""

import itertools
from collections.abc import Iterator

import pytest

from support.pyctr_command import Pyctr, running_pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PROGRAMS = ("sh", "cat", "echo", "id", "sleep", "stat", "true")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    with running_pyctr(PROGRAMS) as command:
        yield command


@pytest.fixture
def name(pyctr: Pyctr) -> Iterator[str]:
    """A name for the container of a test; whatever the test leaves under it goes."""
    name = f"misuse{next(_numbers)}"
    yield name
    pyctr.run("rm", "-f", name)


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [("<&-", "out\n", "err\n"), (">&-", "", "err\n"), ("2>&-", "out\n", ""), ("<&- >&- 2>&-", "", "")],
)
def test_a_closed_stream_is_an_empty_one(pyctr: Pyctr, closed: str, out: str, err: str) -> None:
    """The connection to the daemon must not take its number: its bytes would be the container's input or output."""
    script = "cat; echo out; echo err >&2; exit 3"
    done = pyctr.run(
        "run", "--rm", "-i", "--network", "none", "demo", "sh", "-c", script,
        wrapper=("sh", "-c", f'exec "$@" {closed}', "sh"),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, out, err)
