"""What a client asks of a transfer, as values. Source: containerd.types.transfer."""

from collections.abc import Mapping
from dataclasses import field

from pyctrd.core.labels import Labels
from pyctrd.core.platforms import Platform
from pyctrd.core.values import dataclass


@dataclass(frozen=True, slots=True)
class ExtraReference:
    """Another name for what arrives. A prefix completes, or selects among, the names that an archive brings."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True)
class Unpack:
    """Have the image for `platform` (None: this machine's) unpacked by `snapshotter` ("": the default)."""

    platform: Platform | None = None
    snapshotter: str = ""


@dataclass(frozen=True, slots=True)
class ImageStore:
    """An image in the store, as a source or a destination. No platforms means all of them."""

    name: str
    labels: Labels = field(default_factory=dict)
    platforms: tuple[Platform, ...] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    extra_references: tuple[ExtraReference, ...] = ()
    unpacks: tuple[Unpack, ...] = ()

    def wanted(self, host: Platform) -> tuple[Platform, ...]:
        """Return the platforms that something is wanted for, as far as they were named; `host` is this machine's."""
        return (*self.platforms, *(one.platform or host for one in self.unpacks))


@dataclass(frozen=True, slots=True)
class Registry:
    """A reference in a registry, and how to reach that; `host_dir` replaces the configured directories."""

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict)
    host_dir: str = ""
    default_scheme: str = ""
    auth_stream: str = ""


@dataclass(frozen=True, slots=True)
class ImportStream:
    """An archive that the client sends over `stream`."""

    stream: str
    media_type: str = ""
    force_compress: bool = False


@dataclass(frozen=True, slots=True)
class ExportStream:
    """An archive that the client takes from `stream`. No platforms and not all of them: this machine's."""

    stream: str
    media_type: str = ""
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    skip_compatibility_manifest: bool = False
    skip_non_distributable: bool = False


Endpoint = ImageStore | Registry | ImportStream | ExportStream
