"""Which streams another shim is told, instead of those that only ours understands."""

import stat
from pathlib import Path

import pytest

from pyctrd.runtime import other_streams
from pyctrd.runtime.bundle import Bundle, Bundles, Manifest, StdioNames

LOG = "cri:///logs/main.log?below=/logs"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundles(tmp_path).create(Manifest("ns", "c1", "r", "abc", 1, shim="/bin/shim"), b"{}")


@pytest.mark.parametrize(
    ("names", "ours"),
    [
        (StdioNames("", LOG, LOG), True),
        (StdioNames("attach:", "", ""), True),
        (StdioNames("", "json-file:///log", ""), True),
        (StdioNames("/fifo/in", "/fifo/out", "/fifo/err"), False),
        (StdioNames("", "binary:///bin/logger", ""), False),
        (StdioNames(), False),
    ],
)
def test_what_another_shim_knows_is_passed_on(names: StdioNames, ours: bool) -> None:
    assert other_streams.are_ours(names) is ours


def test_only_what_is_wanted_has_a_fifo(bundle: Bundle) -> None:
    told = other_streams.make_fifos(bundle, "", StdioNames("", LOG, LOG))

    assert told.stdin == ""
    assert [stat.S_ISFIFO(Path(path).stat().st_mode) for path in (told.stdout, told.stderr)] == [True, True]
    assert Path(told.stdout).stat().st_mode & 0o777 == 0o600


def test_a_terminal_has_one_output(bundle: Bundle) -> None:
    told = other_streams.make_fifos(bundle, "e1", StdioNames("attach:", "attach:", "attach:", terminal=True))

    assert (Path(told.stdin).name, Path(told.stdout).name) == ("exec-e1.stdin", "exec-e1.stdout")
    assert (told.stderr, told.terminal) == ("", True)


def test_an_exec_s_go_with_it(bundle: Bundle) -> None:
    of_first = other_streams.make_fifos(bundle, "", StdioNames("", LOG, LOG))
    other_streams.make_fifos(bundle, "e1", StdioNames("attach:", "attach:", "attach:"))

    other_streams.remove_fifos(bundle, "e1")

    assert {str(path) for path in (bundle.path / "streams").iterdir()} == {of_first.stdout, of_first.stderr}
    other_streams.remove_fifos(bundle, "e1")


def test_who_has_the_streams_is_told_by_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    """The shim itself, if it is ours."""
    ours = Bundles(tmp_path).create(Manifest("ns", "c2", "r", "abc", 1), b"{}")
    for one, name in ((bundle, "streams.json"), (ours, "shim.json")):
        assert one.attachment() is None
        (one.path / name).write_text('{"pid": 7, "address": "/s/1", "attach": "/s/1.attach"}')
        found = one.attachment()
        assert found is not None
        assert (found.pid, found.attach) == (7, "/s/1.attach")
