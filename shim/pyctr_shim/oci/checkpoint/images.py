"""A checkpoint's files. Somebody else may have made them: they are looked at before CRIU is let loose on them.

    descriptors.json   what the first process has as its fds 0 to 2, by the names that CRIU has for them
    *.img              CRIU's
    parent             a link to the directory of an earlier pre-dump, within the images' parent directory

An image of CRIU's is a magic number for all of them, one for its kind, and messages, each with its length in front.
Source: CRIU's wiki, "Images".
"""

import json
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from pyctr_shim.oci.errors import OciError
from pyctr_wire.criu import images_pb2

DESCRIPTORS: Final = "descriptors.json"
PARENT: Final = "parent"
MOST_FILES: Final = 100_000

_SMALL: Final = 16 << 20
_HEADER: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<I")
_IMAGE_MAGIC: Final = 0x54564319
_SECCOMP_MAGIC: Final = 0x64413049
_MOUNTS_MAGIC: Final = 0x55563928
_MOUNTS: Final = re.compile(r"mountpoints-[0-9]+\.img")


def check(directory: str) -> None:
    """Raise OciError unless everything in a directory is what CRIU writes: regular files, few enough of them."""
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise OciError(f"checkpoint {directory}: {error.strerror}", error.errno or 0) from None
    if len(names) > MOST_FILES:
        raise OciError(f"checkpoint {directory}: {len(names)} files are more than {MOST_FILES}")
    for name in names:
        mode = os.lstat(f"{directory}/{name}").st_mode
        if stat.S_ISLNK(mode) and name == PARENT:
            check_parent(os.readlink(f"{directory}/{name}"))
        elif not stat.S_ISREG(mode):
            raise OciError(f"checkpoint {directory}: {name} is not a regular file")
    if "inventory.img" not in names:
        raise OciError(f"checkpoint {directory}: there is no inventory.img in it: it is no checkpoint, or half of one")


def check_parent(path: str) -> None:
    """Raise OciError for a parent that is not beside the images: that is where CRIU writes one that it can follow."""
    names = path.split("/")
    if path.startswith("/") or names[:1] != [".."] or ".." in names[1:]:
        raise OciError(f"parent path {path!r} does not begin with .. or climbs further: it must lie beside the images")


def write_descriptors(directory: str, names: Sequence[str]) -> None:
    """Write down what the first process's fds 0 to 2 are."""
    fd = os.open(f"{directory}/{DESCRIPTORS}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(list(names), file)


def read_descriptors(directory: str) -> list[str]:
    """Return what was written so; empty for a checkpoint without. Raises OciError for what is no list of texts."""
    try:
        found = json.loads(_read(f"{directory}/{DESCRIPTORS}"))
    except FileNotFoundError:
        return []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise OciError(f"checkpoint {directory}: {DESCRIPTORS} is not a list of texts")
    return found


def first_filters(directory: str) -> Iterator[bytes]:
    """Yield the programs of those seccomp filters that were loaded first, below any others of the same process.

    Raises OciError for an image that is none.
    """
    try:
        for data in _messages(directory, "seccomp.img", _SECCOMP_MAGIC):
            for item in images_pb2.Filters.FromString(data).filters:
                if not item.HasField("previous"):
                    yield item.program
    except FileNotFoundError:
        return
    except DecodeError:
        raise OciError(f"checkpoint {directory}: seccomp.img does not decode") from None


def without_masters(directory: str, mount_points: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and new contents of each image of mounts, of which those at `mount_points` are nobody's slaves.

    A slave's master is a mount of another machine's, or of an earlier boot; CRIU looks for it where it can hardly be.
    What also has a group of its own, or a master in the container, stays as it is. Raises OciError for an image that
    is none.
    """
    for name in filter(_MOUNTS.fullmatch, sorted(os.listdir(directory))):
        try:
            found = [images_pb2.Mount.FromString(data) for data in _messages(directory, name, _MOUNTS_MAGIC)]
        except DecodeError:
            raise OciError(f"checkpoint {directory}: {name} does not decode") from None
        groups = {item.group for item in found} - {0}
        for item in found:
            if item.where in mount_points and not item.group and item.master not in groups:
                item.ClearField("master")
        messages = [item.SerializeToString() for item in found]  # with all the fields that we do not know
        yield name, _HEADER.pack(_IMAGE_MAGIC, _MOUNTS_MAGIC) + b"".join(_LENGTH.pack(len(m)) + m for m in messages)


def _messages(directory: str, name: str, kind: int) -> Iterator[bytes]:
    """Yield the messages of an image. Raises OciError unless it is one of this kind."""
    data = _read(f"{directory}/{name}")
    if len(data) < _HEADER.size or _HEADER.unpack_from(data) != (_IMAGE_MAGIC, kind):
        raise OciError(f"checkpoint {directory}: {name} is not an image of its kind")
    at = _HEADER.size
    while at < len(data):
        end = at + _LENGTH.size
        end += _LENGTH.unpack(data[at:end])[0] if end <= len(data) else 0
        if end > len(data):
            raise OciError(f"checkpoint {directory}: {name} is cut short")
        yield data[at + _LENGTH.size : end]
        at = end


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(_SMALL + 1)
    if len(data) > _SMALL:
        raise OciError(f"{path} is larger than {_SMALL} bytes")
    return data
