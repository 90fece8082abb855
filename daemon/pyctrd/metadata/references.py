"""The rows as a graph of what keeps what, and the removal of what nothing keeps."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from sqlite3 import Connection
from typing import Any, TypeAlias

from pyctrd.core.events import ImageDelete, SnapshotRemove
from pyctrd.core.leases import FLAT_LABEL
from pyctrd.core.reachability import PREFIX, Graph, Node, is_expired
from pyctrd.core.times import to_microseconds
from pyctrd.metadata.database import Transaction

Rows: TypeAlias = Connection | Transaction
Refs: TypeAlias = set[tuple[str, str]]
Garbage: TypeAlias = dict[str, set[Node]]
"""What nothing keeps, by namespace."""


def find_garbage(rows: Rows, now: datetime, locked: Refs) -> Garbage:
    """Return what may go: `rows` must show one moment. `locked` are the ingests that have a writer."""
    namespaces = [ns for (ns,) in rows.execute("SELECT name FROM namespaces")]
    found = {ns: graph(rows, ns, now, locked).garbage() for ns in namespaces}
    return {ns: garbage for ns, garbage in found.items() if garbage}


def freed_without(rows: Rows, ns: str, now: datetime, locked: Refs, images: Iterable[str]) -> set[Node]:
    """Return what would go, of one namespace, if it had not `images`; no blob that another namespace sees too."""
    garbage = graph(rows, ns, now, locked).garbage({Node("images", name) for name in images})
    shared = rows.execute("SELECT DISTINCT digest FROM blobs WHERE ns != ?", (ns,))
    return garbage - {Node("content", digest) for (digest,) in shared}


def graph(rows: Rows, ns: str, now: datetime, locked: Refs) -> Graph:
    """Return the graph of one namespace."""
    result = Graph(now)
    _add_leases(result, rows, ns, now)
    _add_ingests(result, rows, ns, now, locked)
    for name, digest, labels in _select(rows, ns, "name, digest", "images"):
        node = Node("images", name)
        result.structure[node] = [Node("content", digest)]
        if is_expired(labels, now):
            result.collectable.add(node)
        else:
            result.roots.append(node)
        result.label(node, labels)
    for container_id, snapshotter, key, labels in _select(rows, ns, "id, snapshotter, snapshot_key", "containers"):
        node = Node("containers", container_id)
        result.roots.append(node)
        result.structure[node] = [Node(f"snapshots/{snapshotter}", key)]
        result.label(node, labels)
    for sandbox_id, labels in _select(rows, ns, "id", "sandboxes"):
        node = Node("sandboxes", sandbox_id)
        result.roots.append(node)
        result.label(node, labels)
    for digest, labels in _select(rows, ns, "digest", "blobs"):
        node = Node("content", digest)
        result.collectable.add(node)
        result.label_root(node, labels)
    _add_snapshots(result, rows, ns)
    return result


def remove(transaction: Transaction, garbage: Garbage) -> None:
    """Delete the rows; what happens to images and snapshots is announced."""
    for ns, nodes in garbage.items():
        for kind, object_id in sorted(nodes):
            match kind.partition("/"):
                case "leases", _, _:
                    transaction.execute("DELETE FROM leases WHERE ns = ? AND id = ?", (ns, object_id))
                    transaction.execute("DELETE FROM lease_resources WHERE ns = ? AND lease = ?", (ns, object_id))
                case "ingests", _, _:
                    transaction.execute("DELETE FROM ingests WHERE ns = ? AND ref = ?", (ns, object_id))
                case "content", _, _:
                    transaction.execute("DELETE FROM blobs WHERE ns = ? AND digest = ?", (ns, object_id))
                case "images", _, _:
                    transaction.execute("DELETE FROM images WHERE ns = ? AND name = ?", (ns, object_id))
                    transaction.publish(ns, ImageDelete(object_id))
                case "snapshots", _, snapshotter:
                    transaction.execute(
                        "DELETE FROM snapshots WHERE ns = ? AND snapshotter = ? AND name = ?",
                        (ns, snapshotter, object_id),
                    )
                    transaction.publish(ns, SnapshotRemove(object_id, snapshotter))


def _add_leases(graph: Graph, rows: Rows, ns: str, now: datetime) -> None:
    for lease, labels in _select(rows, ns, "id", "leases"):
        node = Node("leases", lease)
        if is_expired(labels, now):
            graph.collectable.add(node)
            continue  # whatever its other labels say
        if FLAT_LABEL in labels:
            graph.flat_roots.append(node)
        else:
            graph.roots.append(node)
        graph.label(node, labels)
    for lease, kind, object_id in rows.execute("SELECT lease, type, id FROM lease_resources WHERE ns = ?", (ns,)):
        graph.structure.setdefault(Node("leases", lease), []).append(Node(kind, object_id))


def _add_ingests(graph: Graph, rows: Rows, ns: str, now: datetime, locked: Refs) -> None:
    moment = to_microseconds(now)
    for ref, expected, expires_at in rows.execute("SELECT ref, expected, expires_at FROM ingests WHERE ns = ?", (ns,)):
        node = Node("ingests", ref)
        graph.structure[node] = [Node("content", expected)]
        graph.collectable.add(node)
        if (ns, ref) in locked or (expires_at is not None and expires_at > moment):
            graph.roots.append(node)


def _add_snapshots(graph: Graph, rows: Rows, ns: str) -> None:
    nodes, parents = {}, {}
    for snapshot_id, parent_id, snapshotter, name, labels in _select(
        rows, ns, "id, parent_id, snapshotter, name", "snapshots"
    ):
        node = nodes[snapshot_id] = Node(f"snapshots/{snapshotter}", name)
        parents[node] = parent_id
        graph.collectable.add(node)
        graph.label_root(node, labels)
    for node, parent_id in parents.items():
        if parent_id in nodes:
            graph.structure[node] = [nodes[parent_id]]


def _select(rows: Rows, ns: str, columns: str, table: str) -> Iterator[tuple[Any, ...]]:
    """Yield columns of a table's rows in `ns`, and last their labels, decoded where one concerns collection."""
    query = f"SELECT {columns}, iif(instr(labels, '{PREFIX}'), labels, '') FROM {table} WHERE ns = ?"  # noqa: S608 - constants
    for *values, labels in rows.execute(query, (ns,)):
        yield (*values, json.loads(labels) if labels else {})
