"""What garbage collection keeps, as a rule over values."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pyctrd.core.reachability import Graph, Node, is_expired

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def content(name: str) -> Node:
    return Node("content", name)


def test_label_references() -> None:
    graph = Graph()
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
    graph = Graph(roots=[Node("containers", "c")], collectable={content("x"), content("y")})
    graph.label(content("x"), {"containerd.io/gc.bref.container.log": "c"})
    graph.label(content("y"), {"containerd.io/gc.bref.container": "gone"})
    assert graph.garbage() == {content("y")}


def test_flat_roots_follow_structure_and_no_labels() -> None:
    image, target, child = Node("images", "i"), content("t"), content("c")
    graph = Graph(structure={image: [target]}, references={target: [child]}, collectable={target, child})
    graph.flat_roots.append(image)
    assert graph.garbage() == {child}
    graph.roots.append(target)
    assert graph.garbage() == set()


def test_the_root_label() -> None:
    graph = Graph(collectable={content("x")})
    graph.label(content("x"), {"containerd.io/gc.root": "whatever"})
    assert graph.garbage() == set()


def test_expiry() -> None:
    assert is_expired({"containerd.io/gc.expire": "2025-12-31T23:59:59Z"}, NOW)
    assert not is_expired({"containerd.io/gc.expire": "2026-01-01T00:00:01Z"}, NOW)
    assert not is_expired({"containerd.io/gc.expire": "rubbish"}, NOW)
    assert not is_expired({}, NOW)


_NODES = st.integers(0, 20).map(lambda number: content(str(number)))


@given(st.lists(_NODES), st.lists(st.tuples(_NODES, _NODES)))
def test_nothing_reachable_is_garbage_and_the_rest_is(roots: list[Node], edges: list[tuple[Node, Node]]) -> None:
    graph = Graph(roots=roots, collectable={content(str(number)) for number in range(21)})
    for number, (source, target) in enumerate(edges):
        (graph.structure if number % 2 else graph.references).setdefault(source, []).append(target)
    kept = graph.collectable - graph.garbage()
    assert kept >= set(roots)
    for source, target in edges:
        assert source not in kept or target in kept
    # Each kept object is a root or has a kept one that refers to it.
    assert all(node in roots or any(target == node and source in kept for source, target in edges) for node in kept)
