"""What a URL stands for: a request that was checked when the URL was given out, and that can be fetched once."""

import secrets
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from pyctr_wire.errors import ResourceExhausted

LIFETIME: Final = 60.0
LIMIT: Final = 1000
_RANDOM_BYTES: Final = 6

_T = TypeVar("_T")


class Tokens(Generic[_T]):
    """Requests that wait to be fetched: each for a minute, at most a thousand."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Tell the age of requests by `clock`, in seconds."""
        self._clock = clock
        self._waiting: dict[str, tuple[float, _T]] = {}  # the oldest first

    def issue(self, request: _T) -> str:
        """Return a token of 8 characters for `request`. Raises ResourceExhausted if too many wait."""
        self._forget_expired()
        if len(self._waiting) >= LIMIT:
            raise ResourceExhausted("maximum number of in-flight requests exceeded")
        token = secrets.token_urlsafe(_RANDOM_BYTES)
        self._waiting[token] = (self._clock() + LIFETIME, request)
        return token

    def redeem(self, token: str) -> _T | None:
        """Return what `token` stands for, the first time and in time; else None."""
        self._forget_expired()
        _, request = self._waiting.pop(token, (0.0, None))
        return request

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._waiting and self._waiting[oldest := next(iter(self._waiting))][0] <= now:
            del self._waiting[oldest]
