"""Blobs: each goes on where an earlier run was cut, and counts only when the target has its digest.

Source: containerd.services.content.v1.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask

from pyctr_wire.containerd.services.content.v1 import content_pb2 as pb
from pyctr_wire.errors import AlreadyExists, ApiError, DataLoss, FailedPrecondition, NotFound, OutOfRange, Unavailable
from pyctrd.migration.side import Side

_SERVICE: Final = "/containerd.services.content.v1.Content/"
# Seconds until a daemon has noticed that an earlier run's writer is gone, or is back after a restart.
_PATIENCE: Final = 20.0
_PAUSE: Final = 0.5
_ATTEMPTS: Final = 2


def blobs(side: Side) -> Iterator[pb.Info]:
    """Yield what there is."""
    for batch in side.receive(f"{_SERVICE}List", pb.ListContentRequest(), pb.ListContentResponse):
        yield from batch.info


def look_up(side: Side, digest: str) -> pb.Info | None:
    """Return what is known of a blob, None if it is not there."""
    try:
        return side.call(f"{_SERVICE}Info", pb.InfoRequest(digest=digest), pb.InfoResponse).info
    except NotFound:
        return None


def read(side: Side, digest: str, limit: int) -> bytes:
    """Return a blob of at most `limit` bytes. Raises NotFound, OutOfRange."""
    data = b""
    for piece in side.receive(f"{_SERVICE}Read", pb.ReadContentRequest(digest=digest), pb.ReadContentResponse):
        data += piece.data
        if len(data) > limit:
            raise OutOfRange(f"content {digest}: more than {limit} bytes")
    return data


def copy(source: Side, target: Side, info: pb.Info) -> bool:
    """See that the target has a blob, with its labels; return whether it was missing.

    Raises NotFound if the source has lost it meanwhile, DataLoss if what the source sends is not what its digest says.
    """
    # In this order, so that no collection comes between.
    target.hold("content", info.digest)
    there = look_up(target, info.digest)
    if there is None:
        source.hold("content", info.digest)
        _send_until_right(source, target, info)
        there = look_up(target, info.digest)
        if there is None or there.size != info.size:
            raise DataLoss(f"content {info.digest}: the target took it and does not have it now")
        missing = True
    else:
        missing = False
    _add_labels(target, info, there)
    return missing


def _add_labels(target: Side, info: pb.Info, there: pb.Info) -> None:
    """Give the target's blob the labels that it lacks: what is there may have come another way."""
    lacking = {key: value for key, value in info.labels.items() if key not in there.labels}
    if lacking:
        changed = pb.Info(digest=info.digest, labels=lacking)
        mask = FieldMask(paths=[f"labels.{key}" for key in lacking])
        target.call(f"{_SERVICE}Update", pb.UpdateRequest(info=changed, update_mask=mask), pb.UpdateResponse)


def _send_until_right(source: Side, target: Side, info: pb.Info) -> None:
    give_up = time.monotonic() + _PATIENCE
    attempts = _ATTEMPTS
    while True:
        try:
            _send(source, target, info)
        except AlreadyExists:  # another namespace had it, and now this one does
            return
        except Unavailable:
            if time.monotonic() >= give_up:
                raise
            time.sleep(_PAUSE)
        except (FailedPrecondition, OutOfRange) as error:
            # What an earlier run left may be wrong; what begins anew can only be wrong at its source.
            attempts -= 1
            with suppress(NotFound):
                target.call(f"{_SERVICE}Abort", pb.AbortRequest(ref=_ref(info)), Empty)
            if not attempts:
                raise DataLoss(f"content {info.digest}: what the source sends is something else: {error}") from None
        else:
            return


def _send(source: Side, target: Side, info: pb.Info) -> None:
    """Send what the target lacks of a blob, and commit it there: the target checks the digest."""
    offset = _arrived(target, info)
    failures: list[ApiError] = []

    def requests() -> Iterator[pb.WriteContentRequest]:
        at = offset
        yield pb.WriteContentRequest(action=pb.STAT, ref=_ref(info), total=info.size, expected=info.digest)
        try:
            if at < info.size:
                wanted = pb.ReadContentRequest(digest=info.digest, offset=at)
                for piece in source.receive(f"{_SERVICE}Read", wanted, pb.ReadContentResponse):
                    yield pb.WriteContentRequest(action=pb.WRITE, offset=at, data=piece.data)
                    at += len(piece.data)
        except ApiError as error:  # grpc would make a traceback of it, and a cancelled call
            failures.append(error)
            return
        yield pb.WriteContentRequest(
            action=pb.COMMIT, offset=at, total=info.size, expected=info.digest, labels=info.labels
        )

    committed = False
    try:
        for answer in target.exchange(f"{_SERVICE}Write", requests(), pb.WriteContentResponse):
            committed = answer.action == pb.COMMIT
    finally:
        if failures:
            raise failures[0]
    if not committed:
        raise DataLoss(f"content {info.digest}: the target ended the transfer before it was committed")


def _arrived(target: Side, info: pb.Info) -> int:
    """Return how many bytes of a blob an earlier run has brought."""
    try:
        return target.call(f"{_SERVICE}Status", pb.StatusRequest(ref=_ref(info)), pb.StatusResponse).status.offset
    except NotFound:
        return 0


def _ref(info: pb.Info) -> str:
    return f"pyctr-migrate-{info.digest}"
