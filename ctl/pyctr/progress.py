"""Progress of a transfer: bars on a terminal, nothing where nobody looks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from pyctr_wire.containerd.types.transfer.progress_pb2 import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID


# What is said of something that has all its bytes.
_WHOLE: Final = frozenset({"complete", "already exists", "extracted", "saved", "pushed content"})


class Display(Protocol):
    """Shows progress."""

    def show(self, progress: Progress) -> None:
        """Take in one report."""


class Silent:
    """Shows nothing."""

    def show(self, progress: Progress) -> None:
        """Ignore it."""


class Bars:
    """A line with a bar for each blob."""

    def __init__(self) -> None:
        """Import rich: only where a terminal looks."""
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.live = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TextColumn("{task.fields[event]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def show(self, progress: Progress) -> None:
        """Move the bar of a blob, or print what is said of the whole."""
        if not progress.HasField("desc"):
            if not progress.name:
                self.live.console.print(progress.event, style="dim", highlight=False)
            return
        total = progress.total or progress.desc.size
        done = total if progress.event in _WHOLE else progress.progress
        kind, _, digest = progress.name.partition("-sha256:")
        task = self._tasks.get(progress.name)
        if task is None:
            description = f"{kind} {digest[:12]}"
            self._tasks[progress.name] = self.live.add_task(
                description, total=total, completed=done, event=progress.event
            )
        else:
            self.live.update(task, total=total, completed=done, event=progress.event)


@contextmanager
def display() -> Iterator[Display]:
    """Yield a display for this process's standard error."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    bars = Bars()
    with bars.live:
        yield bars
