"""Whether a container is started again: containerd's labels, docker's policies.

    containerd.io/restart.status              "running" or "stopped": what it shall be; others are not looked after
    containerd.io/restart.policy              no, always, on-failure[:RETRIES], unless-stopped; "" is always
    containerd.io/restart.count               how often it was started again
    containerd.io/restart.explicitly-stopped  "true": somebody stopped it, who is to start it too
    containerd.io/restart.loguri              what its new task is given for stdout and stderr

Source: containerd core/runtime/restart; docker's documentation of `--restart`.
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from pyctr_wire import labels as names
from pyctr_wire.errors import InvalidArgument
from pyctrd.core.labels import Labels

FIRST_DELAY: Final = 0.1  # seconds
LAST_DELAY: Final = 60.0  # seconds
LASTING: Final = 10.0  # seconds that a task must have run for the next delay to be the first again


_RETRIES: Final = re.compile("[0-9]{1,9}")


class Wish(StrEnum):
    """What a container shall be, as far as the daemon looks after it."""

    RUNNING = "running"
    STOPPED = "stopped"
    CREATED = "created"  # running, once somebody has started it
    NOTHING = ""


_WISHES: Final = {wish.value: wish for wish in Wish}


class When(StrEnum):
    """The policies."""

    NO = "no"
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    UNLESS_STOPPED = "unless-stopped"


class Policy(NamedTuple):
    """A policy; `retries` limits on-failure, 0 does not."""

    when: When
    retries: int = 0


def parse_policy(text: str) -> Policy:
    """Return the policy that `text` names. Raises InvalidArgument."""
    name, colon, number = text.partition(":")
    try:
        when = When(name or When.ALWAYS)
    except ValueError:
        raise InvalidArgument(f'restart policy "{text}" is none of {", ".join(When)}') from None
    if not colon:
        return Policy(when)
    if when is not When.ON_FAILURE:
        raise InvalidArgument(f'restart policy "{text}": only {When.ON_FAILURE} takes a number of retries')
    if not _RETRIES.fullmatch(number):
        raise InvalidArgument(f'restart policy "{text}": the number of retries must be a whole number')
    return Policy(when, int(number))


def labels_for(policy: str, *, running: bool) -> dict[str, str]:
    """Return the labels of a container with a policy, "" for those that it has not.

    One that is not `running` begins to be looked after when somebody starts it. Raises InvalidArgument.
    """
    when = parse_policy(policy).when if policy else When.NO
    wish = Wish.NOTHING if when is When.NO else Wish.RUNNING if running else Wish.CREATED
    return {
        names.RESTART_POLICY: policy,
        names.RESTART_STATUS: wish.value,
        names.RESTART_COUNT: "",
        names.RESTART_EXPLICITLY_STOPPED: "",
    }


def wish_of(labels: Labels) -> Wish:
    """Return what a container shall be; a status that is none of containerd's two is not looked after."""
    status = labels.get(names.RESTART_STATUS, "")
    return _WISHES.get(status, Wish.NOTHING)


def count_of(labels: Labels) -> int:
    """Return how often it was started again; a damaged number counts from 0."""
    text = labels.get(names.RESTART_COUNT, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def explicitly_stopped(labels: Labels) -> bool:
    """Return whether somebody stopped it and has not started it since. Source: Go's strconv.ParseBool."""
    return labels.get(names.RESTART_EXPLICITLY_STOPPED, "").lower() in ("true", "t", "1")


def starts_again(labels: Labels, exit_status: int | None, *, after_boot: bool = False) -> bool:
    """Return whether a container that does not run is to be started; `exit_status` is None if there is no task.

    One that somebody stopped stays so until somebody starts it, but for `always`, which a boot of the machine brings
    back. An exit that nobody knows is no failure: one that a boot ended is not started again by on-failure.
    Raises InvalidArgument for a policy that is none.
    """
    policy = parse_policy(labels.get(names.RESTART_POLICY, ""))
    if wish_of(labels) is not Wish.RUNNING or policy.when is When.NO:
        return False
    if explicitly_stopped(labels):
        return policy.when is When.ALWAYS and after_boot
    if policy.when is not When.ON_FAILURE:
        return True
    return bool(exit_status) and (policy.retries == 0 or count_of(labels) < policy.retries)


def delay(failures: int) -> float:
    """Return the seconds to wait after `failures` short runs in a row: twice as long after each, a minute at most."""
    return float(min(FIRST_DELAY * 2 ** min(failures, 16), LAST_DELAY))
