"""The table of what is under way."""

import asyncio

import pytest

from pyctr_wire.errors import NotFound, UnknownError
from pyctrd.runtime.operations import FAILURES_KEPT, Operations


def test_running_operation_is_listed_until_it_ends() -> None:
    operations = Operations()
    with operations.begin("default", "container web", "create", timeout=5) as operation:
        operation.stage = "start the shim"
        assert operations.running() == [operation]
        assert operations.about("web") == [operation]
        assert operations.about(operation.id) == [operation]
        assert operation.deadline is not None
    assert operations.running() == []
    assert operations.about("web") == []


def test_error_for_clients_passes_unchanged_and_is_kept() -> None:
    operations = Operations()
    with pytest.raises(NotFound), operations.begin("default", "container web", "start") as operation:  # noqa: PT012
        operation.stage = "look"
        raise NotFound("x")
    (kept,) = operations.about("web")
    assert (kept.stage, kept.error) == ("look", "x: not found")
    assert kept.ended_at is not None


def test_error_of_the_system_names_object_and_stage() -> None:
    operations = Operations()
    text = "container web: create: write: No space left on device: /run/x"
    with pytest.raises(UnknownError, match=text), operations.begin("default", "container web", "create") as operation:  # noqa: PT012
        operation.stage = "write"
        raise OSError(28, "no", "/run/x")


def test_failures_are_bounded() -> None:
    operations = Operations()
    for number in range(FAILURES_KEPT + 10):
        with pytest.raises(NotFound), operations.begin("default", f"container c{number}", "start"):
            raise NotFound("x")
    assert operations.about("c9") == []
    assert len(operations.about("c10")) == 1


def test_a_client_that_goes_away_is_a_reason() -> None:
    operations = Operations()
    with pytest.raises(asyncio.CancelledError), operations.listed("default", "image x", "pull"):
        raise asyncio.CancelledError
    (kept,) = operations.about("x")
    assert kept.error == "its client went away"
