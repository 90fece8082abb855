"""Image names, moments, signals, exit codes."""

import signal
from datetime import UTC, datetime, timedelta

import click
import pytest

from pyctr import exit_codes, references, stopping, times
from pyctr.errors import CommandError
from pyctr_wire.errors import UnknownError


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("a/b:1", "docker.io/a/b:1"),
        ("index.docker.io/x", "docker.io/library/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("host:5000/a/b/c", "host:5000/a/b/c:latest"),
        ("quay.io/x@sha256:" + "0" * 64, "quay.io/x@sha256:" + "0" * 64),
        ("[::1]:5000/x:y", "[::1]:5000/x:y"),
    ],
)
def test_names_are_completed_as_docker_does(text: str, full: str) -> None:
    assert references.complete(text) == full


@pytest.mark.parametrize("text", ["", "UPPER", "a//b", "a:b:c", "-a", "a" * 0 + "0" * 64, "a b", "../x"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(CommandError):
        references.complete(text)


def test_familiar_names_and_tags() -> None:
    assert references.familiar("docker.io/library/x:1") == "x:1"
    assert references.familiar("docker.io/a/x:1") == "a/x:1"
    assert references.split_tag("host:5000/x") == ("host:5000/x", "<none>")
    assert references.split_tag("host:5000/x:1@sha256:00") == ("host:5000/x", "1")


NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", NOW - timedelta(minutes=10)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("2026-01-31T11:00:00.123456789Z", datetime(2026, 1, 31, 11, 0, 0, 123456, UTC)),
        ("1700000000", datetime.fromtimestamp(1_700_000_000, UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert times.parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "10", "10x", "2026-13-01", "99999999999h"])
def test_what_is_no_moment(text: str) -> None:
    if text == "10":
        assert times.parse_moment(text, NOW).year == 1970
        return
    with pytest.raises(click.BadParameter):
        times.parse_moment(text, NOW)


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("sigkill", 9), ("9", 9), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", signal.SIGRTMAX - 1)],
)
def test_signals(text: str, number: int) -> None:
    assert stopping.parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "TERM+1", "_DFL", "RTMIN+x", "RTMAX+1"])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(CommandError):
        stopping.parse_signal(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('exec: "x": executable file not found in $PATH', 127),
        ("exec /x: no such file or directory", 127),
        ("exec /x: permission denied", 126),
        ("exec /etc: is a directory", 126),
        ("no space left on device", 125),
    ],
)
def test_exit_codes_of_start_errors(text: str, code: int) -> None:
    assert exit_codes.of_start_error(UnknownError(f"OCI runtime create failed: {text}")) == code
