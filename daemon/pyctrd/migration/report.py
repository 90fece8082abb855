"""What a run did: counted as it goes, told at the end."""

import sys
from collections import Counter, defaultdict
from typing import Final

KINDS: Final = ("content", "images", "snapshots", "containers", "leases")


class Report:
    """One run's outcome, namespace by namespace."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self._copied: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._present: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._skipped: defaultdict[str, list[str]] = defaultdict(list)
        self._notes: defaultdict[str, list[str]] = defaultdict(list)
        self._order: list[str] = []

    @property
    def complete(self) -> bool:
        """Whether all that the source has is in the target now."""
        return not any(self._skipped.values())

    def begin(self, namespace: str) -> None:
        """Say which namespace comes now."""
        self._order.append(namespace)
        sys.stderr.write(f"{namespace}:\n")

    def stage(self, kind: str, number: int) -> None:
        """Say what is being done, to whoever watches."""
        sys.stderr.write(f"  {kind}: {number} to look at\n")

    def done(self, namespace: str, kind: str, *, missing: bool) -> None:
        """Count an object that the target has; `missing` says that this run brought it."""
        (self._copied if missing else self._present)[namespace][kind] += 1

    def skip(self, namespace: str, what: str, why: str) -> None:
        """Note an object that the target has not, and why."""
        self._skipped[namespace].append(f"{what}: {why}")

    def note(self, namespace: str, text: str) -> None:
        """Note something that a reader should know."""
        self._notes[namespace].append(text)

    def text(self) -> str:
        """Return the whole report of a run that came to its end."""
        lines = self._lines() or ["the source has no namespace"]
        verdict = "all is in the target" if self.complete else "what is skipped is not in the target"
        return "\n".join([*lines, verdict, ""])

    def text_so_far(self) -> str:
        """Return what a run has done that was cut, and claim nothing of all else."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> list[str]:
        lines = []
        for namespace in self._order:
            lines.append(f"namespace {namespace}")
            for kind in KINDS:
                copied, present = self._copied[namespace][kind], self._present[namespace][kind]
                lines.append(f"  {kind + ':':<12} {copied} copied, {present} there already")
            lines += [f"  skipped      {line}" for line in self._skipped[namespace]]
            lines += [f"  note         {line}" for line in self._notes[namespace]]
        return lines
