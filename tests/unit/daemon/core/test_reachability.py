"""What garbage collection keeps, as a rule over values."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.core.reachability import Graph, Node, is_expired
from pyctrd.core.times import parse_span

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def content(name: str) -> Node:
    return Node("content", name)


def test_label_references() -> None:
    graph = Graph(NOW)
    image = Node("images", "i")
    graph.label(
        image,
        {
            "containerd.io/gc.ref.content": "a",
            "containerd.io/gc.ref.content.l.0": "b",
            "containerd.io/gc.ref.content/x": "c",
            "containerd.io/gc.ref.snapshot.overlayfs": "s",
            "containerd.io/gc.ref.snapshot.overlayfs/1": "t",
            "containerd.io/gc.ref.image.x": "j",
            "containerd.io/gc.ref.contents": "no",
            "containerd.io/gc.ref.stream.1": "no",
        },
    )
    assert set(graph.references[image]) == {
        content("a"),
        content("b"),
        content("c"),
        Node("snapshots/overlayfs", "s"),
        Node("snapshots/overlayfs", "t"),
        Node("images", "j"),
    }


def test_a_back_reference_keeps_its_own_object() -> None:
    graph = Graph(NOW, roots=[Node("containers", "c")], collectable={content("x"), content("y")})
    graph.label(content("x"), {"containerd.io/gc.bref.container.log": "c"})
    graph.label(content("y"), {"containerd.io/gc.bref.container": "gone"})
    assert graph.garbage() == {content("y")}


def test_flat_roots_follow_structure_and_no_labels() -> None:
    image, target, child = Node("images", "i"), content("t"), content("c")
    graph = Graph(NOW, structure={image: [target]}, references={target: [child]}, collectable={target, child})
    graph.flat_roots.append(image)
    assert graph.garbage() == {child}
    graph.roots.append(target)
    assert graph.garbage() == set()


def test_the_root_label() -> None:
    graph = Graph(NOW, collectable={content("x")})
    graph.label(content("x"), {"containerd.io/gc.root": "whatever"})
    assert graph.garbage() == {content("x")}  # only content and snapshots can be made roots
    graph.label_root(content("x"), {"containerd.io/gc.root": "whatever"})
    assert graph.garbage() == set()


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("usedat<2h|cache", True),
        ("usedat<30m|cache", False),
        ("usedat>30m|cache", True),
        ("usedat>1h0m1s|cache", False),
        ("usedat<1s,usedat>59m|cache", True),
        ("usedat<1s,other>1,usedat<|cache", False),
        ("usedat<=2h|cache", False),
        ("usedat<2h", False),
        ("usedat<2h|other", False),
        ("usedat<soon|cache", False),
    ],
)
def test_a_reference_that_depends_on_when_a_snapshot_was_used(condition: str, holds: bool) -> None:
    snapshot, never_used = Node("snapshots/overlayfs", "cache"), Node("snapshots/overlayfs", "other")
    graph = Graph(NOW, roots=[content("x")], collectable={snapshot, never_used})
    graph.label(content("x"), {"containerd.io/gc.cond.snapshot.overlayfs/1": condition})
    graph.label_root(snapshot, {"containerd.io/gc.cond.value-usedat": "2025-12-31T23:00:00Z"})
    graph.label_root(never_used, {"containerd.io/gc.cond.value-usedat": "long ago"})
    assert (snapshot not in graph.garbage()) == holds
    assert never_used in graph.garbage()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("-1.5s", -1.5), (".5m", 30), ("0", 0), ("2ms", 0.002), ("3us", 3e-6), ("+1h", 3600)],
)
def test_time_spans(text: str, seconds: float) -> None:
    assert parse_span(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "1", "h", "1d", "1h ", "--1h", "1h-1m", ".", ".s", "9" * 400 + "h"])
def test_what_is_no_time_span(text: str) -> None:
    assert parse_span(text) is None


@pytest.mark.timeout(5)
def test_a_label_full_of_digits_is_soon_known_to_be_no_time_span() -> None:
    """Clients write these labels, and each collection reads them."""
    assert parse_span("1" * 40_000) is None


def test_expiry() -> None:
    assert is_expired({"containerd.io/gc.expire": "2025-12-31T23:59:59Z"}, NOW)
    assert not is_expired({"containerd.io/gc.expire": "2026-01-01T00:00:01Z"}, NOW)
    assert not is_expired({"containerd.io/gc.expire": "rubbish"}, NOW)
    assert not is_expired({}, NOW)
    assert is_expired({"containerd.io/gc.expire": "0001-01-01T00:00:00+01:00"}, NOW)
    assert not is_expired({"containerd.io/gc.expire": "9999-12-31T23:59:59-01:00"}, NOW)


_NODES = st.integers(0, 20).map(lambda number: content(str(number)))


@given(st.lists(_NODES), st.lists(st.tuples(_NODES, _NODES)))
def test_nothing_reachable_is_garbage_and_the_rest_is(roots: list[Node], edges: list[tuple[Node, Node]]) -> None:
    graph = Graph(NOW, roots=roots, collectable={content(str(number)) for number in range(21)})
    for number, (source, target) in enumerate(edges):
        (graph.structure if number % 2 else graph.references).setdefault(source, []).append(target)
    kept = graph.collectable - graph.garbage()
    assert kept >= set(roots)
    for source, target in edges:
        assert source not in kept or target in kept
    # Each kept object is a root or has a kept one that refers to it.
    assert all(node in roots or any(target == node and source in kept for source, target in edges) for node in kept)
