"""What containers have beside their records and snapshots, and what goes with them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyctrd.core.containers import Container
from pyctrd.runtime.named_volumes import NamedVolumes
from pyctrd.runtime.network_files import NetworkFiles
from pyctrd.runtime.presence import Presence
from pyctrd.runtime.volumes import Volumes


class Belongings:
    """The stores of it; synchronous, thread-safe."""

    def __init__(
        self,
        root: Path,
        container_exists: Callable[[str, str], bool],
        containers: Callable[[str], Sequence[Container]],
    ) -> None:
        """Keep it below `root`; `container_exists` is given namespace and id, `containers` a namespace."""
        self._presence = Presence(container_exists)
        self.volumes = Volumes(root / "volumes", self._presence)
        self.named_volumes = NamedVolumes(root / "named_volumes", containers)
        self.network_files = NetworkFiles(root / "network", self._presence)

    @contextmanager
    def making(self, ns: str, container: str) -> Iterator[None]:
        """Leave alone, in the block, what is made for a container that has no record yet; after an error it goes.

        Raises AlreadyExists if one of that id is being made.
        """
        self.container_gone(ns, container)  # an earlier one of that id, if there was one
        try:
            with self._presence.making(ns, container), self.named_volumes.taking(ns, container):
                yield
        finally:
            self.container_gone(ns, container)  # unless it has its record by now

    def any_of(self, ns: str, container: str) -> bool:
        """Return whether there is anything that goes with a container."""
        return self.volumes.has(ns, container) or self.network_files.has(ns, container)

    def container_gone(self, ns: str, container: str) -> None:
        """Remove what goes with a container; without effect while that is there."""
        self.volumes.container_gone(ns, container)
        self.network_files.container_gone(ns, container)

    def sweep(self) -> None:
        """Remove what went with containers that are gone, and what was being removed."""
        self.volumes.sweep()
        self.named_volumes.sweep()
        self.network_files.sweep()
