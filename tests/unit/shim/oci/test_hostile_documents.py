"""Documents that are not meant well are refused by the name of a field, or all of the runtime can work with them."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz import config_json
from pyctr_shim.oci import scheduling, validate
from pyctr_shim.oci.errors import OciError
from support.hostile_documents import VALUES, Path, full_spec, mutate_json, places, replaced, without

SPEC = full_spec()
PLACES = list(places(SPEC))

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)


def dotted(place: Path) -> str:
    """Return a place as an error names it."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")


def test_a_spec_with_every_field_is_of_use_to_all_of_the_runtime() -> None:
    """Save for a limit or two, as version 1 and version 2 of cgroups differ in what they have."""
    config_json.check(json.dumps(SPEC).encode())
    of_one_version = {config_json.limits_v1, config_json.limits_v2}
    for consumer in set(config_json.CONSUMERS) - of_one_version:
        consumer(SPEC)
    for consumer in of_one_version:
        consumer(replaced(SPEC, ("linux", "resources"), {"memory": {"limit": 5}, "cpu": {"shares": 5}}))


@pytest.mark.parametrize("step", [30, pytest.param(1, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_any_value_in_the_place_of_any_other(step: int) -> None:
    """Each place, and in it each value, or of thirty values one that is another for the next place."""
    for number, place in enumerate(PLACES):
        config_json.check(json.dumps(without(SPEC, place)).encode())
        for value in VALUES[number % step :: step]:
            config_json.check(json.dumps(replaced(SPEC, place, value)).encode())


@pytest.mark.parametrize("value", [0.5, [{}], {"a": [[]]}, -(10**30), "\ud800"], ids=repr)
def test_a_value_of_a_wrong_type_is_told_by_its_place(value: Any) -> None:
    for place in PLACES:
        if place == ("linux",) and isinstance(value, dict):
            continue  # the right type: one without namespaces, which the fields beside it need
        try:
            validate.check_spec(replaced(SPEC, place, value))
        except OciError as error:
            named = str(error).partition(": ")[0]
            assert named.startswith(dotted(place)) or dotted(place).startswith(named), (place, str(error))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_and_any_json(data: bytes) -> None:
    config_json.check(data)
    for load in (validate.load_process, validate.load_resources):
        try:
            load(data)
        except OciError as error:
            assert ": " in str(error)


@given(place=st.sampled_from(PLACES), value=JSON, also=st.sampled_from(PLACES))
def test_any_json_in_any_place(place: Path, value: Any, also: Path) -> None:
    changed = replaced(SPEC, place, value)
    config_json.check(json.dumps(changed).encode())
    if also[: len(place)] != place:
        config_json.check(json.dumps(without(changed, also)).encode())


@given(st.integers(0, 1 << 32))
def test_what_the_fuzzer_makes_of_a_spec(seed: int) -> None:
    config_json.check(mutate_json(config_json.seeds[0], 1 << 20, seed))


@pytest.mark.parametrize("data", [b'{"a":' * 900 + b"1" + b"}" * 900, b"[" * 5_000_000, b'{"hooks":' + b"[" * 100_000])
def test_depth_is_refused_or_survived(data: bytes) -> None:
    config_json.check(data)


def test_the_same_key_twice_is_the_last_one() -> None:
    text = json.dumps(SPEC).removesuffix("}") + ', "hostname": 5}'

    with pytest.raises(OciError, match="hostname: must be a string"):
        validate.parse_spec(text.encode(), "config.json")


@given(st.text("0123456789-, ", max_size=30) | st.text(max_size=10))
def test_lists_of_numbers(text: str) -> None:
    try:
        found = scheduling.parse_numbers(text)
    except OciError:
        return
    assert len(found) <= 1 << 16
    named = [part.strip().partition("-") for part in text.split(",")]
    assert found == {number for low, dash, high in named for number in range(int(low), int(high if dash else low) + 1)}


@pytest.mark.parametrize("text", ["0-4294967295", "0-60000,0-60000", "9" * 5000, "0-" + "9" * 20, "1-2-3", "-1", ""])
def test_lists_of_too_many_numbers(text: str) -> None:
    with pytest.raises(OciError):
        scheduling.parse_numbers(text)


def test_the_mutations_are_many() -> None:
    """A fuzzer that only ever makes the same would find nothing."""
    chance = random.Random(5)
    made = {mutate_json(config_json.seeds[0], 1 << 20, chance.randrange(1 << 30)) for _ in range(50)}
    assert len(made) > 40
