"""One exception class per status code: the class is the contract, the text is for people.

Messages end in the class's own words (`container "x": not found`): containerd's clients strip that
suffix and add it again when they print.
"""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Status codes. Source: google/rpc/code.proto."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ApiError(Exception):
    """An error that a client is meant to see; `str()` is the whole status message."""

    code: ClassVar[Code] = Code.UNKNOWN
    suffix: ClassVar[str] = ""

    def __init__(self, message: str) -> None:
        """Keep `message`, ended with the class's words unless it ends in them already."""
        ending = f": {self.suffix}"
        if self.suffix and not message.endswith(ending):
            message += ending
        super().__init__(message)


class UnknownError(ApiError):
    """Something failed that no other class describes; the text is all there is."""


class NotFound(ApiError):
    """The object is not there."""

    code = Code.NOT_FOUND
    suffix = "not found"


class AlreadyExists(ApiError):
    """An object of that name is there already."""

    code = Code.ALREADY_EXISTS
    suffix = "already exists"


class InvalidArgument(ApiError):
    """The request can never succeed as it is."""

    code = Code.INVALID_ARGUMENT
    suffix = "invalid argument"


class FailedPrecondition(ApiError):
    """The object is in a state that does not allow this now."""

    code = Code.FAILED_PRECONDITION
    suffix = "failed precondition"


class Unavailable(ApiError):
    """Try again: locked, busy or connection lost."""

    code = Code.UNAVAILABLE
    suffix = "unavailable"


class Unimplemented(ApiError):
    """We do not do this; the text names it."""

    code = Code.UNIMPLEMENTED
    suffix = "not implemented"


class Aborted(ApiError):
    """The operation was given up half-way and undone."""

    code = Code.ABORTED
    suffix = "aborted"


class OutOfRange(ApiError):
    """An offset or index lies outside the object."""

    code = Code.OUT_OF_RANGE
    suffix = "out of range"


class DataLoss(ApiError):
    """Stored bytes are not what was stored."""

    code = Code.DATA_LOSS
    suffix = "data loss"


class ResourceExhausted(ApiError):
    """A limit was reached: memory, descriptors, message size."""

    code = Code.RESOURCE_EXHAUSTED
    suffix = "resource exhausted"


class PermissionDenied(ApiError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED
    suffix = "permission denied"


class Unauthenticated(ApiError):
    """Credentials are missing or wrong."""

    code = Code.UNAUTHENTICATED
    suffix = "unauthenticated"


class Internal(ApiError):
    """An invariant of ours is broken."""

    code = Code.INTERNAL
    suffix = "internal"


class DeadlineExceeded(ApiError):
    """It took longer than it may."""

    code = Code.DEADLINE_EXCEEDED
    suffix = "context deadline exceeded"


class Cancelled(ApiError):
    """The caller went away."""

    code = Code.CANCELLED
    suffix = "context canceled"


_CLASSES: dict[int, type[ApiError]] = {
    cls.code: cls
    for cls in (
        NotFound, AlreadyExists, InvalidArgument, FailedPrecondition, Unavailable, Unimplemented, Aborted, OutOfRange,
        DataLoss, ResourceExhausted, PermissionDenied, Unauthenticated, Internal, DeadlineExceeded, Cancelled,
    )
}  # fmt: skip


def error_for(code: int, message: str) -> ApiError:
    """Return the exception that stands for a status received from a peer, its text unchanged."""
    error = _CLASSES.get(code, UnknownError)("")
    error.args = (message,)
    return error
