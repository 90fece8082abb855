"""Restart policies: what labels mean."""

import pytest

from pyctr_wire import labels as names
from pyctr_wire.errors import InvalidArgument
from pyctrd.core.restarts import (
    LAST_DELAY,
    Policy,
    When,
    Wish,
    delay,
    labels_for,
    parse_policy,
    starts_again,
    wish_of,
)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", Policy(When.ALWAYS)),
        ("no", Policy(When.NO)),
        ("always", Policy(When.ALWAYS)),
        ("unless-stopped", Policy(When.UNLESS_STOPPED)),
        ("on-failure", Policy(When.ON_FAILURE)),
        ("on-failure:3", Policy(When.ON_FAILURE, 3)),
    ],
)
def test_policies(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    ["never", "always:3", "no:", "on-failure:", "on-failure:-1", "on-failure:x", "³", "on-failure:" + "9" * 5000],
)
def test_what_is_no_policy_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        parse_policy(text)


@pytest.mark.parametrize(
    ("policy", "exit_status", "more", "after_boot", "expected"),
    [
        ("", 0, {}, False, True),
        ("no", 1, {}, True, False),
        ("always", 0, {}, False, True),
        ("always", None, {}, False, True),
        ("always", 0, {names.RESTART_EXPLICITLY_STOPPED: "true"}, False, False),
        ("always", None, {names.RESTART_EXPLICITLY_STOPPED: "True"}, True, True),
        ("unless-stopped", 1, {}, False, True),
        ("unless-stopped", None, {names.RESTART_EXPLICITLY_STOPPED: "1"}, True, False),
        ("unless-stopped", None, {names.RESTART_EXPLICITLY_STOPPED: "false"}, True, True),
        ("on-failure", 0, {}, False, False),
        ("on-failure", None, {}, True, False),
        ("on-failure", 137, {names.RESTART_COUNT: "99"}, False, True),
        ("on-failure", 1, {names.RESTART_EXPLICITLY_STOPPED: "true"}, False, False),
        ("on-failure:2", 1, {names.RESTART_COUNT: "1"}, False, True),
        ("on-failure:2", 1, {names.RESTART_COUNT: "2"}, False, False),
        ("on-failure:2", 1, {names.RESTART_COUNT: "many"}, False, True),
    ],
)
def test_who_starts_again(
    policy: str, exit_status: int | None, more: dict[str, str], after_boot: bool, expected: bool
) -> None:
    labels = {names.RESTART_STATUS: "running", names.RESTART_POLICY: policy, **more}

    assert starts_again(labels, exit_status, after_boot=after_boot) is expected


@pytest.mark.parametrize("status", ["stopped", "created", "paused", ""])
def test_only_what_shall_run_starts_again(status: str) -> None:
    assert not starts_again({names.RESTART_STATUS: status, names.RESTART_POLICY: "always"}, 1)


def test_labels_of_a_policy() -> None:
    assert wish_of(labels_for("always", running=False)) is Wish.CREATED
    assert wish_of(labels_for("on-failure:4", running=True)) is Wish.RUNNING
    assert wish_of(labels_for("no", running=True)) is Wish.NOTHING
    assert wish_of(labels_for("", running=True)) is Wish.NOTHING
    with pytest.raises(InvalidArgument):
        labels_for("sometimes", running=True)


def test_delays_grow_up_to_a_minute() -> None:
    delays = [delay(failures) for failures in range(2000)]

    assert delays[:3] == [0.1, 0.2, 0.4]
    assert delays == sorted(delays)
    assert delays[-1] == LAST_DELAY
