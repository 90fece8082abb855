"""Reading logs: tails, rotation, damaged lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pyctr import log_files
from pyctr.log_files import LogReader, parse_cri_line, parse_json_line
from pyctr_shim.loop import Loop
from pyctr_shim.stdio.log_driver import open_file_log


def line(text: str) -> str:
    return json.dumps({"log": text, "stream": "stdout", "time": "2026-01-31T12:00:00.123456789Z"}) + "\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "json.log"


@pytest.fixture
def reader(log: Path) -> Iterator[LogReader]:
    with LogReader(log, parse_json_line) as reader:
        yield reader


def texts(reader: LogReader) -> list[str]:
    return [entry.text for entry in reader.read()]


def test_a_log_that_is_not_there_yet(reader: LogReader, log: Path) -> None:
    reader.seek(None)
    assert texts(reader) == []
    log.write_text(line("a\n"))
    assert texts(reader) == ["a\n"]


def test_all_files_are_read_oldest_first(reader: LogReader, log: Path) -> None:
    for number, name in enumerate(("json.log.2", "json.log.1", "json.log")):
        log.with_name(name).write_text(line(f"{number}\n"))
    reader.seek(None)
    assert texts(reader) == ["0\n", "1\n", "2\n"]


@pytest.mark.parametrize(("count", "first"), [(0, 30), (1, 29), (7, 23), (12, 18), (29, 1), (30, 0), (99, 0)])
def test_a_tail_reaches_into_rotated_files(reader: LogReader, log: Path, count: int, first: int) -> None:
    for number, name in enumerate(("json.log.2", "json.log.1", "json.log")):
        log.with_name(name).write_text("".join(line(f"{number * 10 + one}\n") for one in range(10)))
    reader.seek(count)
    assert texts(reader) == [f"{number}\n" for number in range(first, 30)]


def test_a_tail_of_long_lines(reader: LogReader, log: Path) -> None:
    log.write_text("".join(line(f"{number}" + "x" * 50_000 + "\n") for number in range(10)))
    reader.seek(3)
    assert [text.rstrip("x\n") for text in texts(reader)] == ["7", "8", "9"]


def rotate(log: Path) -> None:
    for number in (2, 1):
        older = log.with_name(f"json.log.{number}")
        if older.exists():
            older.rename(log.with_name(f"json.log.{number + 1}"))
    log.rename(log.with_name("json.log.1"))


def test_following_goes_on_across_several_rotations(
    reader: LogReader, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_ASK_EVERY", 1)

    def write_and_rotate(*texts: str) -> None:
        for text in texts:
            if text == "rotate":
                rotate(log)
            else:
                log.write_text((log.read_text() if log.exists() else "") + line(text))

    steps = [("1\n",), ("2\n", "rotate", "3\n"), ("rotate", "4\n", "rotate", "5\n")]

    def ended() -> bool:
        if steps:
            write_and_rotate(*steps.pop(0))
            return False
        return True

    reader.seek(None)
    assert [entry.text for entry in reader.follow(ended)] == ["1\n", "2\n", "3\n", "4\n", "5\n"]


def test_half_a_line_waits_for_the_rest(reader: LogReader, log: Path) -> None:
    whole = line("whole\n")
    log.write_text(whole[:10])
    assert texts(reader) == []
    log.write_text(whole)
    assert texts(reader) == ["whole\n"]


def test_damaged_lines_are_passed_over(reader: LogReader, log: Path) -> None:
    log.write_text("{}\nnonsense\n" + '{"log": "x", "stream": "stdout", "time": "yesterday"}\n' + line("good\n"))
    assert texts(reader) == ["good\n"]


def test_cri_lines() -> None:
    entry = parse_cri_line(b"2026-01-31T12:00:00.5Z stderr F some text\n")
    assert entry is not None
    assert (entry.stream, entry.text) == ("stderr", "some text\n")
    part = parse_cri_line(b"2026-01-31T12:00:00.5Z stdout P begin\n")
    assert part is not None
    assert part.text == "begin"
    assert parse_cri_line(b"nonsense\n") is None


@pytest.mark.parametrize("options", ["max-size=1k", "max-size=1k&max-file=3"])
def test_a_log_is_followed_across_its_rotations(reader: LogReader, log: Path, options: str) -> None:
    """Also one that keeps no file but the newest, as is the default."""
    loop = Loop()
    out = open_file_log(loop, urlsplit(f"json-file://{log}?{options}")).stream("stdout")
    found = []
    for number in range(100):
        out.write(f"{number}\n".encode())
        found += texts(reader)
    out.end()
    loop.close()
    assert found == [f"{number}\n" for number in range(100)]
