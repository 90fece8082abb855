"""Images by every name: how references are completed, how records are merged, and what is ambiguous."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_wire.errors import NotFound
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.labels import Labels
from pyctrd.core.leases import EXPIRE_LABEL
from pyctrd.cri.image_index import (
    MANAGED,
    MANAGED_LABEL,
    PINNED,
    PINNED_LABEL,
    Ambiguous,
    Details,
    ImageIndex,
    Record,
    reference_of,
)

ONE, TWO = f"sha256:{'ab' * 32}", f"sha256:{'abab' + 'cd' * 30}"
MANAGED_LABELS = {MANAGED_LABEL: MANAGED}
MANIFEST, OTHER = f"sha256:{'11' * 32}", f"sha256:{'22' * 32}"


def record(name: str, image_id: str = ONE, target: str = MANIFEST, labels: Labels = MANAGED_LABELS) -> Record:
    details = Details(image_id, 7, "", f"chain-{image_id}")
    return Record(name, reference_of(name), Descriptor("type", target, 1), labels, details)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("a/b", "docker.io/a/b:latest"),
        ("index.docker.io/a/b:v1", "docker.io/a/b:v1"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        (f"busybox@{MANIFEST}", f"docker.io/library/busybox@{MANIFEST}"),
        (f"quay.io/a/b:v1@{MANIFEST}", f"quay.io/a/b@{MANIFEST}"),
    ],
)
def test_references_are_completed(text: str, full: str) -> None:
    assert str(reference_of(text)) == full


LONG = pytest.param("a" * 1_000_000, id="long")


@pytest.mark.parametrize("text", ["", ONE, "ab" * 32, "Upper/Case", "a//b", "-", "a:b:c", "a@sha256:123", "a b", LONG])
def test_what_is_no_reference(text: str) -> None:
    assert reference_of(text) is None


@given(st.text(max_size=80) | st.text("abAB019.:/@-_ ", max_size=80))
def test_whatever_is_asked_for_is_found_or_not(text: str) -> None:
    index = ImageIndex([record(ONE), record("docker.io/library/a:latest")])
    with suppress(NotFound):
        assert index.find(text).id == ONE
    found = reference_of(text)
    if found is not None:
        assert str(reference_of(str(found))) == str(found)


def test_records_of_one_image_are_one_image() -> None:
    index = ImageIndex(
        [
            record(ONE),
            record("docker.io/library/busybox:2"),
            record("docker.io/library/busybox:1"),
            record(f"docker.io/library/busybox@{MANIFEST}"),
            record("quay.io/b/b:1", target=OTHER),
            record(f"quay.io/b/b@{OTHER}", target=OTHER),
            record("strange name"),
            record(TWO, TWO),
        ]
    )

    first, second = index.list()

    assert (first.id, first.size, first.chain_id) == (ONE, 7, f"chain-{ONE}")
    assert first.tags == ("docker.io/library/busybox:1", "docker.io/library/busybox:2", "quay.io/b/b:1")
    assert first.digests == (f"docker.io/library/busybox@{MANIFEST}", f"quay.io/b/b@{OTHER}")
    assert "strange name" in first.names
    assert len(first.names) == 7
    assert (second.id, second.tags, second.digests, second.names) == (TWO, (), (), (TWO,))


def test_an_image_is_found_by_all_that_it_is_called() -> None:
    index = ImageIndex(
        [
            record(ONE),
            record("docker.io/library/busybox:latest"),
            record(f"docker.io/library/busybox@{MANIFEST}"),
            record("import:short"),
            record("no reference"),
        ]
    )

    for text in (
        *(ONE, ONE.removeprefix("sha256:"), ONE[:20], ONE.removeprefix("sha256:")[:4]),
        *("busybox", "busybox:latest", "library/busybox", "docker.io/library/busybox:latest"),
        *(f"busybox@{MANIFEST}", f"busybox:gone@{MANIFEST}"),
        *("import:short", "docker.io/library/import:short", "no reference"),
    ):
        assert index.find(text).id == ONE, text
    for text in ("busybox:other", "aba", MANIFEST, f"busybox@{OTHER}", "", "sha256:", "NO REFERENCE"):
        with pytest.raises(NotFound):
            index.find(text)


def test_the_exact_name_comes_before_its_completion() -> None:
    index = ImageIndex([record("docker.io/library/a:latest", ONE), record("a", TWO)])

    assert index.find("a").id == TWO
    assert index.find("a:latest").id == ONE


def test_a_name_comes_before_the_start_of_an_id() -> None:
    index = ImageIndex([record(ONE), record("docker.io/library/abab:latest", TWO)])

    assert index.find("abab").id == TWO


def test_the_start_of_several_ids_means_none() -> None:
    index = ImageIndex([record(ONE), record(TWO, TWO)])

    with pytest.raises(Ambiguous, match="2 images"):
        index.find("abab")
    assert index.find("ababc").id == TWO


def test_what_changed_is_merged_anew() -> None:
    index = ImageIndex([record("docker.io/library/a:1"), record(ONE)])
    before = index.list()
    assert index.list() is before

    index.replace({"docker.io/library/a:1": record("docker.io/library/a:1", TWO)})

    assert [(image.id, image.tags) for image in index.list()] == [(ONE, ()), (TWO, ("docker.io/library/a:1",))]
    index.replace({ONE: None, "never was": None})
    assert [image.id for image in index.list()] == [TWO]
    assert [one.name for one in index.records(TWO)] == ["docker.io/library/a:1"]


def test_one_pinned_record_pins_the_image() -> None:
    index = ImageIndex([record(ONE), record("docker.io/library/a:1", labels={PINNED_LABEL: PINNED})])

    assert index.find(ONE).pinned
    index.replace({"docker.io/library/a:1": record("docker.io/library/a:1", labels={PINNED_LABEL: "no"})})
    assert not index.find(ONE).pinned


def test_who_is_foreign() -> None:
    assert not record("a").is_foreign
    assert not record("a", labels={MANAGED_LABEL: "anything"}).is_foreign
    assert record("a", labels={}).is_foreign
    assert not record("a", labels={EXPIRE_LABEL: "2030-01-01T00:00:00Z"}).is_foreign
