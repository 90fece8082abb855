"""What the daemon and a worker say to each other, over a SOCK_SEQPACKET pair.

    daemon → worker   the request, once, with one fd: the blob to read (apply), the pipe to write (compare)
    worker → daemon   OPAQUE with fds of directories, each answered by DONE; then RESULT or FAILED, once

The request is marshalled: both ends are the same interpreter, and only the worker, which need not trust itself,
loads it. What a worker says is only text and fds.
"""

import marshal

# A mount as plain values: type, source, target, options.
PlainMount = tuple[str, str, str, tuple[str, ...]]

OPAQUE = b"opaque"
DONE = b"done"
RESULT = b"result"
FAILED = b"failed"

# What kind of failure: the archive's fault, a limit or a full disk, the system's, ours.
INVALID = b"invalid"
EXHAUSTED = b"exhausted"
SYSTEM = b"system"
BUG = b"bug"

MAX_FDS = 128
MAX_REQUEST = 1 << 20
MAX_REPLY = 64 << 10


class ApplyRequest:
    """Unpack a blob into mounts. Sizes in bytes."""

    def __init__(
        self, mounts: list[PlainMount], compression: str, budget: int, max_file_size: int, sync_fs: int
    ) -> None:
        """Keep what is asked for; see `Limits` for `budget` and `max_file_size`."""
        self.mounts, self.compression, self.sync_fs = mounts, compression, sync_fs
        self.budget, self.max_file_size = budget, max_file_size


class CompareRequest:
    """Write the layer that turns `left` into `right`; times are cut to `epoch` seconds, unless that is negative."""

    def __init__(self, left: list[PlainMount], right: list[PlainMount], compression: str, epoch: int) -> None:
        """Keep what is asked for."""
        self.left, self.right, self.compression, self.epoch = left, right, compression, epoch


Request = ApplyRequest | CompareRequest


def encode_request(request: Request) -> bytes:
    """Return a request as a datagram."""
    return marshal.dumps((isinstance(request, ApplyRequest), vars(request)))


def decode_request(data: bytes) -> Request:
    """Return the request in a datagram that the daemon sent."""
    is_apply, values = marshal.loads(data)  # noqa: S302 - our own daemon wrote it
    return ApplyRequest(**values) if is_apply else CompareRequest(**values)
