"""Which containers there are, those included that are being made: what decides whether what is theirs may go."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyctr_wire.errors import AlreadyExists


class Presence:
    """Thread-safe. Whoever takes a container's things away holds `lock` from asking `has` until they are gone."""

    def __init__(self, container_exists: Callable[[str, str], bool]) -> None:
        """`container_exists` is given namespace and id, and says whether there is a record."""
        self._exists = container_exists
        self.lock = threading.Lock()
        self._making: set[tuple[str, str]] = set()

    @contextmanager
    def making(self, ns: str, container: str) -> Iterator[None]:
        """Count a container that has no record yet as there, in the block. Raises AlreadyExists if it is being made."""
        key = (ns, container)
        with self.lock:
            if key in self._making:
                raise AlreadyExists(f'container "{container}"')
            self._making.add(key)
        try:
            yield
        finally:
            with self.lock:
                self._making.discard(key)

    def has(self, ns: str, container: str) -> bool:
        """Tell whether a container is there, or about to be."""
        # In this order: the record is there before the making ends.
        return (ns, container) in self._making or self._exists(ns, container)
