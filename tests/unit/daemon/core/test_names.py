"""Identifiers, labels, digests, references: what may be called what."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_wire.errors import InvalidArgument, Unimplemented
from pyctrd.core.digests import chain_ids, digest_of, validate_digest
from pyctrd.core.identifiers import validate_identifier, validate_topic
from pyctrd.core.idmaps import IdMap, Maps, host_id, mapped_root, maps_of, mount_options
from pyctrd.core.labels import changed, validate_labels
from pyctrd.core.leases import Resource, validate_resource
from pyctrd.core.references import Reference, normalize_reference, parse_reference
from pyctrd.core.times import UNSET, from_microseconds, parse_rfc3339, to_microseconds


@pytest.mark.parametrize("text", ["a", "A1", "a-b_c.d", "1" * 76, "k8s.io"])
def test_identifiers(text: str) -> None:
    assert validate_identifier("id", text) == text


@pytest.mark.parametrize("text", ["", "a--b", "a_", "_a", ".", "..", "a/b", "ä", "a\n", "a" * 77, "a b"])
def test_no_identifiers(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^id: identifier"):
        validate_identifier("id", text)


@given(st.lists(st.text("aZ0", min_size=1, max_size=6), min_size=1, max_size=10).map("-".join))
def test_an_identifier_is_a_safe_file_name(text: str) -> None:
    assert "/" not in validate_identifier("id", text)
    assert text not in (".", "..")


def test_topics() -> None:
    assert validate_topic("/tasks/exec-added")
    for topic in ("", "/", "tasks", "/tasks/", "//a", "/a/_"):
        with pytest.raises(InvalidArgument):
            validate_topic(topic)


def test_a_label_may_have_4096_bytes() -> None:
    validate_labels("info.Labels", {"k": "v" * 4095})
    text = (
        "containers.Labels: label key and value length (4097 bytes) greater than maximum size (4096 bytes),"
        f" key: {'k' * 64}: invalid argument"
    )
    with pytest.raises(InvalidArgument, match=f"^{re.escape(text)}$"):
        validate_labels("containers.Labels", {"k" * 100: "v" * 3997})
    with pytest.raises(InvalidArgument, match=r"4097 bytes"):
        validate_labels("x", {"ä": "v" * 4095})


def test_labels_change_as_their_mask_says() -> None:
    old = {"a": "1", "b.c": "2"}
    assert changed(old, {"x": "9", "y": ""}, (), "it") == {"x": "9"}
    assert changed(old, {"x": "9"}, ("labels",), "it") == {"x": "9"}
    assert changed(old, {"b.c": "3", "ignored": "4"}, ("labels.b.c",), "it") == {"a": "1", "b.c": "3"}
    assert changed(old, {}, ("labels.a",), "it") == {"b.c": "2"}
    with pytest.raises(InvalidArgument, match='cannot update "spec" field on it'):
        changed(old, {}, ("spec",), "it")


@given(st.binary())
def test_digests(data: bytes) -> None:
    assert validate_digest(digest_of(data)) == digest_of(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:" + "a" * 63,
        "sha256:" + "A" * 64,
        "md5:" + "a" * 32,
        "sha256:" + "g" * 64,
        "a" * 64,
        "sha256:../" + "a" * 61,
    ],
)
def test_no_digests(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"failed validation"):
        validate_digest(text)


def test_chain_ids() -> None:
    first, second = digest_of(b"1"), digest_of(b"2")
    assert chain_ids([]) == []
    assert chain_ids([first, second]) == [first, digest_of(f"{first} {second}".encode())]


@pytest.mark.parametrize(
    ("typed", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("me/app", "docker.io/me/app:latest"),
        ("index.docker.io/me/app", "docker.io/me/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("gcr.io/a/b/c", "gcr.io/a/b/c:latest"),
        ("Host/app", "Host/app:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("a@sha256:" + "a" * 64, "docker.io/library/a@sha256:" + "a" * 64),
        ("a:t@sha256:" + "a" * 64, "docker.io/library/a:t@sha256:" + "a" * 64),
    ],
)
def test_references_are_normalised(typed: str, full: str) -> None:
    reference = normalize_reference(typed)
    assert str(reference) == full
    assert parse_reference(full) == reference
    assert normalize_reference(reference.familiar()) == reference


@pytest.mark.parametrize(
    "text",
    ["", "a" * 64, "UPPER", "a/B", "a:", "a@", "a b", "a//b", "-a", "a/" + "b" * 256, "a@sha256:12", "a:b:c", "/a"],
)
def test_no_references(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid reference"):
        normalize_reference(text)


def test_a_full_reference_has_its_host() -> None:
    with pytest.raises(InvalidArgument):
        parse_reference("alpine")
    assert parse_reference("docker.io/library/alpine:3") == Reference("docker.io", "library/alpine", "3")
    assert Reference("h", "p", "t", "d").object == "d"


_WORDS = st.text("ab0", min_size=1, max_size=4)
_COMPONENTS = st.builds("".join, st.tuples(_WORDS, st.sampled_from([".", "_", "__", "-", "--"]), _WORDS)) | _WORDS


@given(st.lists(_COMPONENTS, min_size=1, max_size=4), st.text("aZ0_.-", max_size=10).map(lambda tail: f"t{tail}"))
def test_the_familiar_form_means_the_same(path: list[str], tag: str) -> None:
    reference = parse_reference(f"docker.io/{'/'.join(path)}:{tag}")
    if len(path) > 1 and ("." not in path[0] and path[0] != "localhost"):
        assert normalize_reference(reference.familiar()) == reference


def test_resources() -> None:
    assert validate_resource(Resource("k", "snapshots/overlayfs"))
    assert validate_resource(Resource(digest_of(b""), "content"))
    for bad in (
        Resource("k", "snapshots/"),
        Resource("k", "snapshots/a/b"),
        Resource("x", "content"),
        Resource(digest_of(b""), "content/x"),
        Resource("", "images"),
    ):
        with pytest.raises(InvalidArgument):
            validate_resource(bad)
    with pytest.raises(Unimplemented, match=r"^resource type volumes not supported yet: not implemented$"):
        validate_resource(Resource("x", "volumes"))


def test_maps_of_labels() -> None:
    uid, gid = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
    assert maps_of({}) is None
    labels = {uid: "0:100000:65536", gid: "5:1:1,0:7:1"}
    maps = maps_of(labels)
    assert maps is not None
    assert mapped_root(maps) == (100000, 7)
    assert mount_options(maps) == ("uidmap=0:100000:65536", "gidmap=5:1:1,0:7:1")
    assert maps.labels() == labels
    assert [host_id(maps.gids, number) for number in (0, 1, 5)] == [7, None, 1]
    one = maps_of({uid: "0:1:1"})
    assert one == Maps((IdMap(0, 1, 1),), ())
    assert mapped_root(one) == (1, -1)
    assert mount_options(one) == ("uidmap=0:1:1",)
    for bad in ("x", "0:1", "1:5:5", "0:5:0", "0:-1:1"):
        with pytest.raises(InvalidArgument, match="uidmapping"):
            maps_of({uid: bad})


@given(st.datetimes(timezones=st.just(UNSET.tzinfo)))
def test_times_survive_their_column(time: object) -> None:
    assert from_microseconds(to_microseconds(time)) == time  # type: ignore[arg-type]


def test_expiry_times() -> None:
    assert parse_rfc3339("2026-01-02T03:04:05.123456789Z") is not None
    assert parse_rfc3339("2026-01-02T03:04:05+02:00") is not None
    for bad in ("", "soon", "2026-01-02T03:04:05", "2026-01-02"):
        assert parse_rfc3339(bad) is None
