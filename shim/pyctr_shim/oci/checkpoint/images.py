"""A checkpoint's files. Somebody else may have made them: they are looked at before CRIU is let loose on them.

    descriptors.json   what the first process has as its fds 0 to 2, by the names that CRIU has for them
    *.img              CRIU's
    parent             a link to the directory of an earlier pre-dump, within the images' parent directory

CRIU's image of its seccomp filters is a magic number for all of its images, one for this one, and a message with its
length in front. Source: CRIU's wiki, "Images".
"""

import json
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from pyctr_shim.oci.errors import OciError
from pyctr_wire.criu import images_pb2

DESCRIPTORS: Final = "descriptors.json"
PARENT: Final = "parent"
MOST_FILES: Final = 100_000

_SMALL: Final = 16 << 20
_HEADER: Final = struct.Struct("<III")
_IMAGE_MAGIC: Final = 0x54564319
_SECCOMP_MAGIC: Final = 0x64413049


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
        data = _read(f"{directory}/seccomp.img")
    except FileNotFoundError:
        return
    if len(data) < _HEADER.size:
        raise OciError(f"checkpoint {directory}: seccomp.img is cut short")
    common, magic, size = _HEADER.unpack_from(data)
    if (common, magic) != (_IMAGE_MAGIC, _SECCOMP_MAGIC) or len(data) != _HEADER.size + size:
        raise OciError(f"checkpoint {directory}: seccomp.img is not an image of seccomp filters")
    try:
        image = images_pb2.Filters.FromString(data[_HEADER.size :])
    except DecodeError:
        raise OciError(f"checkpoint {directory}: seccomp.img does not decode") from None
    for item in image.filters:
        if not item.HasField("previous"):
            yield item.program


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(_SMALL + 1)
    if len(data) > _SMALL:
        raise OciError(f"{path} is larger than {_SMALL} bytes")
    return data
