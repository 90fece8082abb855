"""What one layer may cost before it is refused: archives come from strangers."""

from typing import NamedTuple


class Limits(NamedTuple):
    """Sizes in bytes of the uncompressed layer.

    A layer may always have `free_bytes`; beyond that it must not be larger than `max_ratio` times
    its blob, and never larger than `max_bytes`. A hole of a sparse file counts against `max_bytes` only.
    """

    max_bytes: int = 256 << 30
    max_ratio: int = 200
    free_bytes: int = 1 << 30

    def budget(self, blob_size: int) -> int:
        """Return how many uncompressed bytes a blob of `blob_size` bytes may have."""
        return min(self.max_bytes, max(self.free_bytes, self.max_ratio * blob_size))
