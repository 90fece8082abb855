"""Tables, templates, numbers and times for people."""

from datetime import UTC, datetime, timedelta

import click
import pytest

from pyctr import output
from pyctr.errors import CommandError, tell

ROWS = [{"ID": "abc", "Names": "web", "Sub": {"A": [1, 2]}}, {"ID": "d", "Names": "", "Sub": {"A": []}}]
COLUMNS = {"ID": "CONTAINER ID", "Names": "NAMES"}


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("table", "CONTAINER ID   NAMES\nabc            web\nd\n"),
        ("{{.ID}}:{{ .Names }}", "abc:web\nd:\n"),
        ("{{json .Sub.A}}", "[1, 2]\n[]\n"),
        ("table {{.Names}}\\t{{.ID}}", "NAMES   CONTAINER ID\nweb     abc\n        d\n"),
    ],
)
def test_formats(format_: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.show_rows(format_, COLUMNS, ROWS)
    assert capsys.readouterr().out == text


def test_truth_is_spelled_as_docker_spells_it() -> None:
    assert output.render("{{.A}} {{.B}} {{json .A}}", {"A": True, "B": False}) == "true false true"


@pytest.mark.parametrize("template", ["{{range .}}", "{{.Nope}}", "{{.ID.Deeper}}", "{{.ID", "a{{"])
def test_templates_that_cannot_be_filled_in(template: str) -> None:
    with pytest.raises(click.UsageError):
        output.render(template, ROWS[0])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0B"), (999, "999B"), (1000, "1kB"), (3_678_000, "3.678MB"), (10**13, "10TB")]
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "Less than a second"), (1, "1 second"), (90, "1 minute"), (7200, "2 hours"), (86400 * 3, "3 days"),
     (86400 * 20, "2 weeks"), (86400 * 100, "3 months"), (86400 * 1000, "2 years")],
)  # fmt: skip
def test_durations(seconds: int, text: str) -> None:
    assert output.duration(timedelta(seconds=seconds)) == text
    now = datetime.now(UTC)
    assert output.age(now - timedelta(seconds=seconds), now) == f"{text} ago"


def test_what_a_terminal_would_obey_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b]0;b\x07\x9b2J\u202e"
    output.show_rows("table", COLUMNS, [{"ID": hostile, "Names": "c"}])
    tell(f"{hostile}\n\tmore")
    CommandError(hostile).show()

    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split() == ["a?]0;b??2J?", "c"]
    assert shown.err == "pyctr: a?]0;b??2J?\n\tmore\npyctr: a?]0;b??2J?\n"


@pytest.mark.parametrize(("text", "shown"), [("caf\u00e9", '"caf\u00e9"'), ("\x9b2J\u202e", '"\\u009b2J\\u202e"')])
def test_a_document_has_nothing_that_a_terminal_would_obey(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show_one("json", text)
    assert capsys.readouterr().out == f"{shown}\n"
