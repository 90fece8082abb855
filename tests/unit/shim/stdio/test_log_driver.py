"""Container logs: no byte lost or torn, rotated at their size, and a disk that refuses holds nobody up."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_shim.loop import Future, Loop
from pyctr_shim.stdio import log_driver
from pyctr_shim.stdio.log_driver import LineCutter, LogFile, format_cri, format_json, format_raw, parse_size
from pyctr_shim.stdio.streams import Names, Owner, Streams
from pyctr_wire.errors import InvalidArgument, UnknownError
from support.shim_harness import eventually


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def texts(path: Path) -> list[str]:
    """Return the texts of a CRI log and its rotated predecessors, oldest first."""
    files = sorted(path.parent.glob(f"{path.name}*"), key=lambda file: -int(file.name.removeprefix(path.name)[1:] or 0))
    return [line.split(" ", 3)[3] for file in files for line in file.read_text().splitlines()]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_lines_are_the_same_however_the_stream_is_cut(chunks: list[bytes]) -> None:
    cutter = LineCutter()
    lines = [line for chunk in chunks for line in cutter.feed(chunk)] + cutter.end()
    assert format_raw("stdout", lines) == b"".join(chunks)


@given(st.text(min_size=1, max_size=4), st.integers(log_driver.MAX_LINE - 5, 3 * log_driver.MAX_LINE))
def test_a_long_line_is_cut_into_parts_between_characters(pattern: str, length: int) -> None:
    pattern = pattern.replace("\n", " ")
    text = (pattern * length)[:length].encode(errors="replace")
    lines = (cutter := LineCutter()).feed(text + b"\nnext\n") + cutter.end()

    parts = [part for part, _ended in lines[:-1]]
    assert b"".join(parts) == text
    assert all(len(part) <= log_driver.MAX_LINE for part in parts)
    assert all(part.decode() is not None for part in parts)
    assert [ended for _part, ended in lines] == [*[False] * (len(parts) - 1), True, True]


def test_a_stream_without_newlines_is_not_kept_in_memory() -> None:
    cutter = LineCutter()
    kept = sum(len(part) for _ in range(100) for part, _ended in cutter.feed(b"x" * 5000))
    assert 500_000 - kept <= log_driver.MAX_LINE


def test_the_formats_are_those_of_docker_and_kubelet() -> None:
    lines = [(b'full "\\\x01 \xff', True), (b"part", False)]
    records = [json.loads(line) for line in format_json("stderr", lines).decode().splitlines()]
    assert [(record["log"], record["stream"]) for record in records] == [
        ('full "\\\x01 \ufffd\n', "stderr"),
        ("part", "stderr"),
    ]
    assert records[0]["time"].endswith("Z")
    first, second = format_cri("stdout", lines).split(b"\n")[:2]
    assert first.split(b" ", 3)[1:] == [b"stdout", b"F", lines[0][0]]
    assert second.split(b" ", 3)[1:] == [b"stdout", b"P", b"part"]


@pytest.mark.parametrize(
    ("text", "size"), [("10m", 10 << 20), ("64K", 64 << 10), ("1gb", 1 << 30), ("7", 7), ("-1", 0), ("0", 0), ("5b", 5)]
)
def test_sizes_are_dockers(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "1t", "1.5m", "-2", "1mm"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_size(text)


def test_rotation_keeps_so_many_files_and_loses_nothing_before(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(loop, path, format_cri, max_size=2000, max_file=3)
    for number in range(200):
        log.append("stdout", [(f"line {number}".encode(), True)])
    log.close()

    assert sorted(file.name for file in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())
    kept = texts(path)
    assert kept == [f"line {number}" for number in range(200 - len(kept), 200)]


def test_one_file_starts_anew_when_it_is_full(loop: Loop, tmp_path: Path) -> None:
    log = LogFile(loop, tmp_path / "log", format_cri, max_size=1000, max_file=1)
    for number in range(100):
        log.append("stdout", [(f"line {number}".encode(), True)])
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    assert texts(tmp_path / "log")[-1] == "line 99"


def test_a_big_batch_is_rotated_within(loop: Loop, tmp_path: Path) -> None:
    log = LogFile(loop, tmp_path / "log", format_cri, max_size=1000, max_file=1000)
    log.append("stdout", [(f"line {number}".encode(), True) for number in range(500)])
    log.close()
    assert max(file.stat().st_size for file in tmp_path.iterdir()) <= 1000
    assert texts(tmp_path / "log") == [f"line {number}" for number in range(500)]


def test_a_long_line_goes_into_the_next_file(loop: Loop, tmp_path: Path) -> None:
    """No file grows beyond its size for a line, but for one that is larger than a whole file."""
    path = tmp_path / "log"
    log = LogFile(loop, path, format_cri, max_size=1000, max_file=10)
    lines = ["short", "x" * 950, "short", "y" * 2000, "short"]
    for line in lines:
        log.append("stdout", [(line.encode(), True)])
    log.close()
    assert texts(path) == lines
    assert sorted(file.stat().st_size > 1000 for file in tmp_path.iterdir()) == [False] * 4 + [True]


def test_a_file_that_is_filled_exactly_is_not_left_early(loop: Loop, tmp_path: Path) -> None:
    line = len(format_cri("stdout", [(b"0", True)]))
    log = LogFile(loop, tmp_path / "log", format_cri, max_size=3 * line, max_file=10)
    log.append("stdout", [(b"0", True)] * 6)
    log.close()
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [3 * line] * 2


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 4096 bytes: writes fail with EFBIG, as on a full disk with ENOSPC."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("batch", [1, 7, 500])  # the last: an entry is larger than what may wait
def test_a_disk_that_refuses_costs_the_oldest_lines_and_says_how_many(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, batch: int
) -> None:
    monkeypatch.setattr(log_driver, "_RING", 10_000)
    monkeypatch.setattr(log_driver, "_RETRY", 0.01)
    path = tmp_path / "log"
    log = LogFile(loop, path, format_cri, max_size=0, max_file=1)
    request.getfixturevalue("small_files")
    for first in range(0, 1000, batch):
        log.append("stdout", [(f"line {number}".encode(), True) for number in range(first, min(first + batch, 1000))])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def recovered() -> bool:
        loop.run_once()
        return bool(texts(path)[-1:] == ["line 999"])

    eventually(recovered, "the log goes on")
    log.close()

    found = texts(path)
    markers = [text for text in found if text.startswith("[pyctr:")]
    assert len(markers) == 1
    dropped = int(markers[0].split()[1])
    assert "File too large" in markers[0]
    lines = [text for text in found if text not in markers]
    assert len(lines) + dropped == 1000
    assert lines == sorted(set(lines), key=lambda text: int(text.split()[1]))


def test_a_log_directory_that_vanishes_is_made_again(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log"
    log = LogFile(loop, path, format_cri, max_size=0, max_file=1)
    log.append("stdout", [(b"one", True)])
    path.unlink()
    path.parent.rmdir()
    log.reopen()
    log.append("stdout", [(b"two", True)])
    log.close()
    assert texts(path) == ["two"]


def test_a_symlink_is_no_log(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(UnknownError, match="log file"):
        LogFile(loop, tmp_path / "log", format_raw, max_size=0, max_file=1)


def test_no_link_leads_to_a_log_from_its_directory(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "logs").symlink_to("real")
    (tmp_path / "real/link").symlink_to("x")
    query = urlencode({"below": str(tmp_path / "logs")})
    log_driver.open_file_log(loop, urlsplit(f"cri://{tmp_path}/logs/new/0%3F.log?{query}")).close()
    assert (tmp_path / "real/new/0?.log").exists()
    with pytest.raises(UnknownError, match=r"log file .*/link/0.log: openat2: Too many levels"):
        log_driver.open_file_log(loop, urlsplit(f"cri://{tmp_path}/logs/link/0.log?{query}"))
    os.mkfifo(tmp_path / "real/fifo")
    with pytest.raises(UnknownError, match=r"log file .*/fifo"):  # at once, although nobody reads
        log_driver.open_file_log(loop, urlsplit(f"cri://{tmp_path}/logs/fifo?{query}"))
    reader = os.open(tmp_path / "real/fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(UnknownError, match=r"log file .*/fifo: not a file"):
        log_driver.open_file_log(loop, urlsplit(f"cri://{tmp_path}/logs/fifo?{query}"))
    os.close(reader)
    for path in ("logs/../0.log", "0.log", "logs"):
        with pytest.raises(InvalidArgument, match="must be below"):
            log_driver.open_file_log(loop, urlsplit(f"cri://{tmp_path}/{path}?{query}"))


@pytest.mark.parametrize(
    "uri",
    [
        "json-file:relative",
        "json-file:///x?max-sice=1",
        "cri:///x?max-size=1",
        "file:///x?max-file=2",
        "json-file:///x?max-file=0",
        "json-file://host/x",
    ],
)
def test_a_uri_that_says_what_we_do_not_know_is_refused(loop: Loop, uri: str) -> None:
    with pytest.raises(InvalidArgument):
        log_driver.open_file_log(loop, urlsplit(uri))


def test_both_streams_of_a_raw_log_end_in_one_file(loop: Loop, tmp_path: Path) -> None:
    log = log_driver.open_file_log(loop, urlsplit(f"file://{tmp_path}/a/b.log"))
    out, err = log.stream("stdout"), log.stream("stderr")
    out.write(b"one\ntw")
    err.write(b"three\n")
    out.write(b"o\nend")
    out.end()
    err.end()
    assert (tmp_path / "a/b.log").read_bytes() == b"one\nthree\ntwo\nend"
    assert os.stat(tmp_path / "a/b.log").st_mode & 0o777 == 0o640


def test_a_fifo_that_nobody_reads_holds_nobody_up(loop: Loop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(UnknownError):
        log_driver.open_file_log(loop, urlsplit(f"file://{tmp_path}/log"))
    reader_fd = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    out = log_driver.open_file_log(loop, urlsplit(f"file://{tmp_path}/log")).stream("stdout")
    for _ in range(100):
        out.write(b"x" * 4095 + b"\n")
    os.close(reader_fd)
    out.end()


def test_rotation_does_not_look_for_files_that_are_not_there(loop: Loop, tmp_path: Path) -> None:
    log = log_driver.open_file_log(loop, urlsplit(f"json-file://{tmp_path}/log?max-size=1&max-file=1000000000"))
    out = log.stream("stdout")
    for _ in range(4):
        out.write(b"line\n")
    out.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2", "log.3"]


@pytest.mark.parametrize(
    "uri",
    [
        "/odd\0",
        "file://[odd",
        "file:///odd%00",
        "binary:///bin/true?odd=%00",
        "binary:///bin/true%5B?\0",
        f"json-file:///odd?max-size={'9' * 5000}",
        f"json-file:///odd?max-file={'9' * 5000}",
    ],
)
def test_names_that_nothing_can_have_are_refused_and_leave_nothing_open(loop: Loop, uri: str) -> None:
    streams = Streams(loop, Names("", uri, uri, terminal=False), Owner("default", "web", 0, 0))
    before = os.listdir("/proc/self/fd")
    told: Future[Exception | None] = Future()

    async def opening() -> None:
        try:
            await streams.open()
        except InvalidArgument as error:
            told.set(error)

    loop.spawn(opening())
    assert told.done
    assert os.listdir("/proc/self/fd") == before
