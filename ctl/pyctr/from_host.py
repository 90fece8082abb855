"""Makes an image from programs of this machine: they, what they load, and a minimal /etc.

The result is an OCI layout in a tar archive, the same for the same files. Symlinks on the way to a file
are kept as they are, so /bin/sh works where /bin is a link to usr/bin and sh to dash.
Source: OCI image-spec 1.1, image-layout.md.
"""

import gzip
import hashlib
import io
import json
import os
import platform
import posixpath
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final

from pyctr import elf
from pyctr.errors import CommandError
from pyctr_wire.oci import image_spec

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_DIRECTORIES: Final = {
    "/dev": 0o755, "/etc": 0o755, "/proc": 0o555, "/root": 0o700, "/run": 0o755, "/sys": 0o555, "/tmp": 0o1777,  # noqa: S108
    "/var": 0o755, "/var/tmp": 0o1777,  # noqa: S108
}  # fmt: skip
_FILES: Final = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/resolv.conf": "",
}
# What line editing looks for, where a program has it.
_TERMINALS: Final = ("l/linux", "s/screen", "v/vt100", "x/xterm", "x/xterm-256color")
_TERMINFO: Final = ("/usr/share/terminfo", "/lib/terminfo", "/etc/terminfo")
_SHORT_NAMES: Final = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")
_MAX_LINKS: Final = 40


class Files:
    """The files of an image, by their paths in it."""

    def __init__(self) -> None:
        """Start empty."""
        self.links: dict[str, str] = {}
        self.sources: dict[str, Path] = {}  # regular files, by where they lie on this machine
        self.directories: dict[str, int] = dict(_DIRECTORIES)  # modes

    def add(self, path: str) -> Path:
        """Add the file at `path` with the symlinks and directories that lead to it; return where it really is.

        Raises CommandError if it is not there.
        """
        waiting = [part for part in reversed(posixpath.abspath(path).split("/")) if part]
        here = ""
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                here = posixpath.dirname(here).rstrip("/")
                continue
            here = f"{here}/{part}"
            try:
                status = os.lstat(here)
            except OSError as error:
                raise CommandError(f"{path}: {error.strerror}") from None
            if stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise CommandError(f"{path}: too many symlinks")
                target = os.readlink(here)
                self.links[here] = target
                here = "" if target.startswith("/") else posixpath.dirname(here).rstrip("/")
                waiting += [one for one in reversed(target.split("/")) if one not in ("", ".")]
            elif stat.S_ISDIR(status.st_mode):
                self.directories.setdefault(here, stat.S_IMODE(status.st_mode))
            elif stat.S_ISREG(status.st_mode):
                self.sources[here] = Path(here)
            else:
                raise CommandError(f"{path} is not a regular file")
        if here not in self.sources:
            raise CommandError(f"{path} is not a regular file")
        return Path(here)

    def add_program(self, path: str) -> None:
        """Add a program with what it needs to start: interpreter, dynamic linker, libraries."""
        real = self.add(path)
        needed = elf.interpreter(real)
        if needed is None:
            return
        if not elf.is_elf(real):
            self.add_program(needed)
            return
        self.add(needed)
        loaded = elf.libraries(real, needed)
        for library in loaded:
            self.add(library)
        if any("libtinfo" in name or "libncurses" in name for name in loaded):
            self._add_terminals()

    def add_short_names(self) -> None:
        """Add /bin and its like where they are links on this machine: people and scripts say /bin/sh."""
        for name in _SHORT_NAMES:
            if os.path.islink(name) and os.path.realpath(name) in self.directories:
                self.links[name] = os.readlink(name)

    def _add_terminals(self) -> None:
        for folder in _TERMINFO:
            for name in _TERMINALS:
                if Path(folder, name).is_file():
                    self.add(f"{folder}/{name}")


def find_program(name: str) -> str:
    """Return the path of a program named by path or as a shell finds it. Raises CommandError."""
    found = shutil.which(name)
    if found is None:
        raise CommandError(f"{name}: there is no such program on this machine")
    return posixpath.abspath(found)


def build(name: str, programs: Iterable[str]) -> IO[bytes]:
    """Return an OCI archive, open for reading at its start, of an image called `name`. The caller closes it."""
    paths = [find_program(program) for program in programs]
    files = Files()
    for path in paths:
        files.add_program(path)
    files.add_short_names()
    with tempfile.TemporaryFile() as layer:
        diff_id = _write_layer(files, layer)
        config = {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": [paths[0]],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        return _write_archive(name, config, layer)


def _entry(path: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path.lstrip("/"))
    info.mode, info.type = mode, kind
    return info


def _write_layer(files: Files, target: IO[bytes]) -> str:
    """Write the layer, compressed, and return the digest of what it is uncompressed."""
    hasher = hashlib.sha256()

    class Tee(io.RawIOBase):
        """Hashes what it passes on."""

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            hasher.update(data)
            packed.write(data)
            return len(data)

    with (
        gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=Tee(), mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, mode in sorted(files.directories.items()):
            tar.addfile(_entry(path, mode, tarfile.DIRTYPE))
        for path, link in sorted(files.links.items()):
            info = _entry(path, 0o777, tarfile.SYMTYPE)
            info.linkname = link
            tar.addfile(info)
        for path, source in sorted(files.sources.items()):
            with source.open("rb") as file:
                status = os.fstat(file.fileno())
                info = _entry(path, stat.S_IMODE(status.st_mode), tarfile.REGTYPE)
                info.size = status.st_size
                tar.addfile(info, file)
        for path, text in sorted(_FILES.items()):
            if path not in files.sources:
                info = _entry(path, 0o644, tarfile.REGTYPE)
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    return f"sha256:{hasher.hexdigest()}"


def _write_archive(name: str, config: dict[str, Any], layer: IO[bytes]) -> IO[bytes]:
    archive = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with tarfile.open(fileobj=archive, mode="w") as tar:

        def blob(media_type: str, data: bytes) -> image_spec.Descriptor:
            digest = hashlib.sha256(data).hexdigest()
            info = _entry(f"blobs/sha256/{digest}", 0o444, tarfile.REGTYPE)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            return image_spec.Descriptor(media_type, f"sha256:{digest}", len(data))

        size = layer.tell()
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()  # type: ignore[arg-type]
        layer.seek(0)
        info = _entry(f"blobs/sha256/{digest}", 0o444, tarfile.REGTYPE)
        info.size = size
        tar.addfile(info, layer)
        packed = image_spec.Descriptor(image_spec.OCI_LAYER_GZIP, f"sha256:{digest}", size)
        made = blob(image_spec.OCI_CONFIG, json.dumps(config, separators=(",", ":")).encode())
        manifest = blob(image_spec.OCI_MANIFEST, image_spec.encode(image_spec.Manifest(made, (packed,))))
        named = image_spec.Descriptor(
            manifest.media_type, manifest.digest, manifest.size, {image_spec.ANNOTATION_IMAGE_NAME: name}
        )
        for path, data in (
            ("index.json", image_spec.encode(image_spec.Index((named,)))),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ):
            info = _entry(path, 0o444, tarfile.REGTYPE)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    archive.seek(0)
    return archive
