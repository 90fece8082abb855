"""How results are printed: a table, JSON lines, or a template in docker's `{{.Field}}` style."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import click

from pyctr.errors import CommandError, plain
from pyctr.session import FORMAT_HELP

Row = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

_ACTION: Final = re.compile(r"\{\{\s*(json\s+)?\.([\w.]*)\s*\}\}|\{\{.*?(?:\}\}|$)")
_DIGEST: Final = re.compile(r"\b(sha256:)?([0-9a-f]{12})[0-9a-f]{52}\b")
_GAP: Final = 3


def format_option(command: F) -> F:
    """Let a command take `--format` behind its name too."""
    return _format_option(command, "--format")


def short_format_option(command: F) -> F:
    """Let a command take `--format` behind its name too, and `-f`, where that is not a filter."""
    return _format_option(command, "--format", "-f")


def _format_option(command: F, *names: str) -> F:
    def remember(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.obj.format = value

    return click.option(
        *names,
        callback=remember,
        expose_value=False,
        metavar="FORMAT",
        help=FORMAT_HELP,
    )(command)


def show_rows(format_: str, columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Print rows. `columns` maps a field to its title and says which fields a table shows."""
    if format_ == "json":
        for row in rows:
            click.echo(json.dumps(row))
    elif format_ == "table":
        show_table(list(columns.values()), [[str(row[field]) for field in columns] for row in rows])
    elif format_.startswith("table "):
        fields = [match.group(2) for match in _ACTION.finditer(format_)]
        template = format_.removeprefix("table ").replace("\\t", "\t")
        titles = [columns.get(field, field.upper()) for field in fields]
        show_table(titles, [render(template, row).split("\t") for row in rows])
    else:
        for row in rows:
            click.echo(render(format_, row))


def show_one(format_: str, value: Any) -> None:
    """Print one document as indented JSON, or through a template."""
    if format_ in ("table", "json"):
        text = json.dumps(value, indent=4, ensure_ascii=False)
        # JSON escapes what a terminal obeyed in the days of ASCII; what it obeys beyond that is escaped with the rest.
        click.echo(text if text.replace("\n", "").isprintable() else json.dumps(value, indent=4))
    else:
        click.echo(render(format_, value))


def show_documents(format_: str, names: Iterable[str], describe: Callable[[str], Row]) -> int:
    """Print the documents of what has these names as one indented JSON list, or each through a template.

    What cannot be described is told of on standard error and does not hide the others. Returns the exit code.
    """
    documents, code = [], 0
    for name in names:
        try:
            documents.append(describe(name))
        except CommandError as error:
            error.show()
            code = error.exit_code
    if format_ in ("table", "json"):
        show_one(format_, documents)
    else:
        for document in documents:
            show_one(format_, document)
    return code


def show_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print left-aligned columns."""
    lines = [list(titles), *([plain(cell) for cell in row] for row in rows)]
    widths = [
        max((len(line[column]) for line in lines if column < len(line)), default=0) for column in range(len(titles))
    ]
    for line in lines:
        cells = (cell.ljust(width + _GAP) for cell, width in zip(line, widths, strict=False))
        click.echo("".join(cells).rstrip())


def render(template: str, value: Any) -> str:
    """Fill in `{{.Field}}`, `{{.A.B}}` and `{{json .Field}}`. Raises click.UsageError for anything else."""

    def replace(match: re.Match[str]) -> str:
        if match.group(2) is None:
            raise click.UsageError(
                f"template {match.group(0)}: only {{{{.Field}}}} and {{{{json .Field}}}} are understood"
            )
        found = value
        for part in filter(None, match.group(2).split(".")):
            if not isinstance(found, Mapping) or part not in found:
                known = ", ".join(found) if isinstance(found, Mapping) else "nothing"
                raise click.UsageError(f"template {match.group(0)}: no field {part!r} (there is: {known})")
            found = found[part]
        return json.dumps(found) if match.group(1) or isinstance(found, Mapping | list | bool) else str(found)

    return _ACTION.sub(replace, template.replace("\\t", "\t").replace("\\n", "\n"))


def shown_digest(format_: str, text: str, *, whole: bool) -> str:
    """Return as much of a digest, or of an id of 64 digits, as tells it from others: in a table, unless `whole`."""
    return text if whole or not format_.startswith("table") else _DIGEST.sub(r"\1\2", text)


def size(count: int) -> str:
    """Return a number of bytes for people, in powers of 1000 as docker prints images."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.4g}{unit}"


def memory(count: int) -> str:
    """Return a number of bytes of memory for people, in powers of 1024."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.4g}{unit}"


_STEPS: Final = ((60, 1, "second"), (3600, 60, "minute"), (2 * 86400, 3600, "hour"), (14 * 86400, 86400, "day"),
                 (60 * 86400, 7 * 86400, "week"), (2 * 365 * 86400, 30 * 86400, "month"))  # fmt: skip


def duration(span: timedelta) -> str:
    """Return a span of time for people: "3 hours"."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 1:
        return "Less than a second"
    for below, unit, name in _STEPS:
        if seconds < below:
            count = seconds // unit
            return f"{count} {name}{'' if count == 1 else 's'}"
    return f"{seconds // (365 * 86400)} years"


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago `moment` was: "3 hours ago"."""
    return f"{duration((now or datetime.now(UTC)) - moment)} ago"
