"""This machine's mounts, as far as a pod's mounts may travel between it and a container: proc(5), mountinfo."""

import os
from collections.abc import Iterable
from typing import Final

from pyctr_sys.proc_lines import read_lines, unescaped
from pyctr_wire.cri import runtime_pb2
from pyctr_wire.errors import InvalidArgument, UnknownError

_BIDIRECTIONAL: Final = runtime_pb2.PROPAGATION_BIDIRECTIONAL
_TO_CONTAINER: Final = runtime_pb2.PROPAGATION_HOST_TO_CONTAINER


def sources(mounts: Iterable[runtime_pb2.Mount]) -> dict[str, str]:
    """Return what each mount's host path leads to, made as a directory where it is missing; images have none.

    Raises InvalidArgument for a path that is no absolute one, UnknownError where mounts could not travel as asked.
    """
    found: dict[str, str] = {}
    for mount in mounts:
        if mount.image.image:
            continue
        path = mount.host_path
        if not path.startswith("/") or "\0" in path + mount.container_path or not mount.container_path:
            raise InvalidArgument(f"mounts: {path[:80]!r} at {mount.container_path[:80]!r} must be absolute paths")
        real = os.path.realpath(path)
        try:
            if not os.path.exists(real):
                os.makedirs(real, 0o755)
        except OSError as error:
            raise UnknownError(f'failed to mkdir "{real}": {error.strerror}') from error
        if mount.propagation in (_BIDIRECTIONAL, _TO_CONTAINER):
            _check_propagation(real, mount.propagation)
        found[path] = real
    return found


def _check_propagation(path: str, propagation: int) -> None:
    mount_point, tags = _mount_of(path)
    is_shared = any(tag.startswith("shared:") for tag in tags)
    is_slave = any(tag.startswith("master:") for tag in tags)
    if propagation == _BIDIRECTIONAL and not is_shared:
        raise UnknownError(f'path "{path}" is mounted on "{mount_point}" but it is not a shared mount')
    if propagation == _TO_CONTAINER and not (is_shared or is_slave):
        raise UnknownError(f'path "{path}" is mounted on "{mount_point}" but it is not a shared or slave mount')


def _mount_of(path: str) -> tuple[str, list[str]]:
    """Return the mount that a path is on, and its optional fields."""
    best: tuple[str, list[str]] = ("/", [])
    for line in read_lines("/proc/self/mountinfo"):
        words = line.split(" ")
        point = unescaped(words[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = point, words[6 : words.index("-")]
    return best
