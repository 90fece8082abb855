"""Classes that get their methods with their first instance are what the standard library makes of them."""

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest

from pyctrd.core.values import dataclass

_FIELDS = {"name": str, "labels": Mapping, "size": int}


@dataclass(frozen=True, slots=True)
class Ours:
    """A value."""

    topic: ClassVar[str] = "/a"
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    size: int = 3

    @property
    def twice(self) -> int:
        """Of something."""
        return 2 * self.size


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    """The same value."""

    topic: ClassVar[str] = "/a"
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    size: int = 3

    @property
    def twice(self) -> int:
        """Of something."""
        return 2 * self.size


@dataclass(slots=True, eq=False)
class Changing:
    """Not a value."""

    count: int = 0

    def __post_init__(self) -> None:
        self.count += 1


@pytest.fixture(params=[Ours, Theirs], name="kind")
def _kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_before_the_first_instance_the_fields_are_known() -> None:
    @dataclass(frozen=True, slots=True)
    class New:
        """A class without an instance."""

        name: str
        size: int = 3

    assert is_dataclass(New)
    assert [one.name for one in fields(New)] == ["name", "size"]
    assert New.__match_args__ == ("name", "size")
    assert New.__slots__ == ("name", "size")


def test_an_instance_has_all_methods(kind: Any) -> None:
    value = kind("a")
    assert (value.name, value.labels, value.size, value.twice, value.topic) == ("a", {}, 3, 6, "/a")
    assert value == kind("a", {}, size=3)
    assert value != kind("b")
    assert value != ("a", {}, 3)
    assert repr(value) == f"{kind.__name__}(name='a', labels={{}}, size=3)"
    assert replace(value, size=4) == kind("a", size=4)
    assert hash(kind("a", ())) == hash(kind("a", ()))
    assert kind("a").labels is not kind("a").labels
    assert copy.copy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value
    match value:
        case kind(name, size=3):
            assert name == "a"
        case _:
            pytest.fail("does not match")


def test_a_frozen_one_does_not_change(kind: Any) -> None:
    value = kind("a")
    with pytest.raises(FrozenInstanceError):
        value.name = "b"
    with pytest.raises(FrozenInstanceError):
        del value.name


def test_wrong_arguments_are_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        kind()
    with pytest.raises(TypeError, match="unexpected keyword argument 'names'"):
        kind(names="a")


def test_what_may_change_does() -> None:
    one, other = Changing(), Changing()
    assert one.count == 1
    one.count = 7
    assert (one.count, other.count) == (7, 1)
    assert one != Changing(6)
    assert len({one, other}) == 2
    with pytest.raises(AttributeError):
        one.unknown = 1  # type: ignore[attr-defined]
