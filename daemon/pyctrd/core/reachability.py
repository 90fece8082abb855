"""What garbage collection keeps: objects, what they refer to, and what can be reached from where.

An edge is structural (an image's target, a snapshot's parent) or a label's. A flat root follows
structural edges only. Source: containerd docs/garbage-collection.md.
"""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pyctrd.core.labels import Labels
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.core.times import parse_rfc3339, parse_span
from pyctrd.core.values import dataclass

PREFIX: Final = "containerd.io/gc."
ROOT_LABEL: Final = "containerd.io/gc.root"

_REFERENCE: Final = "containerd.io/gc.ref."
_BACK_REFERENCE: Final = "containerd.io/gc.bref."
_CONDITION: Final = "containerd.io/gc.cond.snapshot"
_USED_AT: Final = "containerd.io/gc.cond.value-usedat"
_USED_AT_TEST: Final = re.compile(r"usedat([<>])([^=].*)")
_KINDS: Final = {"content": "content", "image": "images", "container": "containers"}


class Node(NamedTuple):
    """An object of one namespace; kinds are those of lease resources, and `containers` and `leases`."""

    kind: str
    id: str


class Condition(NamedTuple):
    """Says that `node` refers to `snapshot` if that was used less, or else more, than `span` ago."""

    node: Node
    snapshot: Node
    less: bool
    span: timedelta


@dataclass(slots=True)
class Graph:
    """The objects of one namespace, as they are at the time `now`."""

    now: datetime

    roots: list[Node] = field(default_factory=list)
    flat_roots: list[Node] = field(default_factory=list)
    structure: dict[Node, list[Node]] = field(default_factory=dict)
    references: dict[Node, list[Node]] = field(default_factory=dict)
    collectable: set[Node] = field(default_factory=set)
    """What goes if it cannot be reached."""
    conditions: list[Condition] = field(default_factory=list)
    used_at: dict[Node, datetime] = field(default_factory=dict)

    def label_root(self, node: Node, labels: Labels) -> None:
        """Add what the labels of content or a snapshot say, `label`'s and that it is a root."""
        if ROOT_LABEL in labels:
            self.roots.append(node)
        self.label(node, labels)

    def label(self, node: Node, labels: Labels) -> None:
        """Add what `node`'s labels say: what it refers to, whose life it shares."""
        for other in _named(labels, _REFERENCE):
            self.references.setdefault(node, []).append(other)
        for other in _named(labels, _BACK_REFERENCE):
            self.references.setdefault(other, []).append(node)
        self.conditions += _conditions(node, labels)
        used_at = parse_rfc3339(labels.get(_USED_AT, ""))
        if used_at is not None:
            self.used_at[node] = used_at

    def garbage(self, without: Container[Node] = ()) -> set[Node]:
        """Return the collectable objects that no root reaches, where those in `without` are none."""
        roots, flat_roots = ([node for node in some if node not in without] for some in (self.roots, self.flat_roots))
        kept = _closure(roots, self.structure, self.references, self._conditional_references())
        return self.collectable - kept - _closure(flat_roots, self.structure)

    def _conditional_references(self) -> dict[Node, list[Node]]:
        edges: dict[Node, list[Node]] = {}
        for node, snapshot, less, span in self.conditions:
            if snapshot in self.used_at:
                age = self.now - self.used_at[snapshot]
                if age < span if less else age > span:
                    edges.setdefault(node, []).append(snapshot)
        return edges


def keep_otherwise(old: Labels, new: Labels) -> bool:
    """Whether labels after a change keep anything else, or any longer, than before."""
    return _kept_by(old) != _kept_by(new)


def _kept_by(labels: Labels) -> Labels:
    return {key: value for key, value in labels.items() if key.startswith(PREFIX)}


def is_expired(labels: Labels, now: datetime) -> bool:
    """Return whether the label containerd.io/gc.expire is a time before `now`; an unreadable one is none."""
    expires_at = parse_rfc3339(labels.get(EXPIRE_LABEL, ""))
    return expires_at is not None and expires_at < now


def _named(labels: Labels, prefix: str) -> Iterator[Node]:
    """Yield the objects that labels `PREFIX KIND…` name; what follows a known kind only tells labels apart."""
    for key, value in labels.items():
        if not key.startswith(prefix):
            continue
        rest = key.removeprefix(prefix)
        word = rest.replace("/", ".").partition(".")[0]
        if word == "snapshot":
            yield Node(f"snapshots/{rest.removeprefix('snapshot.').partition('/')[0]}", value)
        elif word in _KINDS:
            yield Node(_KINDS[word], value)


def _conditions(node: Node, labels: Labels) -> Iterator[Condition]:
    """Yield what labels `….gc.cond.snapshot.SNAPSHOTTER[/NAME]` say: `usedat<SPAN[,…]|KEY`, alternatives."""
    for key, value in labels.items():
        if not key.startswith(_CONDITION):
            continue
        snapshotter = key.removeprefix(_CONDITION).lstrip("./").partition("/")[0]
        tests, _, name = value.partition("|")
        for test in tests.split(","):
            match = _USED_AT_TEST.fullmatch(test)
            span = parse_span(match[2]) if match else None
            if match and name and span is not None:
                yield Condition(node, Node(f"snapshots/{snapshotter}", name), match[1] == "<", span)


def _closure(roots: Iterable[Node], *edges: Mapping[Node, Sequence[Node]]) -> set[Node]:
    reached, pending = set(roots), list(roots)
    while pending:
        node = pending.pop()
        for targets in edges:
            for target in targets.get(node, ()):
                if target not in reached:
                    reached.add(target)
                    pending.append(target)
    return reached
