"""Small images out of nothing: bytes of layers, configurations, manifests and layouts, the same for the same input."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data: bytes) -> str:
    """Return the sha256 digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: Mapping[str, bytes | str], mode: int = 0o755) -> bytes:
    """Return a tar archive of regular files, and of symlinks where a target is given as text."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.mode = mode
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """Return the JSON object that points at `data`."""
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image: its manifest and every blob that it needs, by digest, the manifest included."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    config: bytes
    layers: tuple[bytes, ...]
    diff_ids: tuple[str, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest(self.manifest)


def image(
    *layers: Mapping[str, bytes | str], architecture: str = "amd64", config: Mapping[str, Any] | None = None
) -> BuiltImage:
    """Return an image with one gzip layer for each mapping of file names to contents, or to targets of symlinks."""
    return image_of([tar_of(files) for files in layers], architecture=architecture, config=config)


def image_of(
    archives: Sequence[bytes], *, architecture: str = "amd64", config: Mapping[str, Any] | None = None
) -> BuiltImage:
    """Return an image with one gzip layer for each archive."""
    compressed = [gzip.compress(archive, mtime=0) for archive in archives]
    diff_ids = [digest(archive) for archive in archives]
    config_blob = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config_blob, CONFIG),
            "layers": [descriptor(blob, LAYER) for blob in compressed],
        }
    ).encode()
    blobs = {digest(blob): blob for blob in (config_blob, manifest, *compressed)}
    return BuiltImage(manifest, blobs, config_blob, tuple(compressed), tuple(diff_ids))


def index(*images: tuple[BuiltImage, str]) -> bytes:
    """Return an index of images for the architectures given beside them; "unknown" makes an attestation of one."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                descriptor(
                    one.manifest,
                    MANIFEST,
                    platform={"os": "unknown" if architecture == "unknown" else "linux", "architecture": architecture},
                )
                for one, architecture in images
            ],
        }
    ).encode()


def busybox(**config: Any) -> BuiltImage:
    """Return an image with this machine's static busybox as /bin/busybox and /bin/sh, in two layers."""
    program = Path("/bin/busybox").read_bytes()
    return image({"bin/busybox": program, "bin/sh": program}, {"etc/hello": b"hello\n"}, config=config)


def busybox_with_applets(*above: bytes) -> BuiltImage:
    """Return an image with this machine's static busybox as /bin/busybox, and a link to it for each applet.

    Archives that are `above` it are further layers.
    """
    applets = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    files = {"bin/busybox": Path("/bin/busybox").read_bytes(), "etc/hello": b"hello\n"}
    return image_of([tar_of({**files, **links}), *above], config={"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]})


def write_layout(directory: Path, images: Mapping[str, BuiltImage | Sequence[tuple[BuiltImage, str]]]) -> None:
    """Write an OCI image layout with `images` by tag; a sequence of images with architectures is an index."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    entries = []
    for tag, value in images.items():
        built = [value] if isinstance(value, BuiltImage) else [one for one, _ in value]
        for one in built:
            for name, data in one.blobs.items():
                (blobs / name.partition(":")[2]).write_bytes(data)
        if isinstance(value, BuiltImage):
            entry = descriptor(value.manifest, MANIFEST)
        else:
            data = index(*value)
            (blobs / digest(data).partition(":")[2]).write_bytes(data)
            entry = descriptor(data, INDEX)
        entries.append({**entry, "annotations": {"org.opencontainers.image.ref.name": tag}})
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))


def write_archive(path: Path, images: Mapping[str, BuiltImage | Sequence[tuple[BuiltImage, str]]]) -> Path:
    """Write such a layout as a tar archive, which clients import, and return its path."""
    with tempfile.TemporaryDirectory() as layout:
        write_layout(Path(layout), images)
        with tarfile.open(path, "w") as archive:
            archive.add(layout, ".")
    return path
