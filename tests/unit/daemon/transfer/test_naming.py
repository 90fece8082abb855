"""Names of images: only what the client asked for, whatever an archive says."""

import pytest

from pyctrd.core.descriptors import Descriptor
from pyctrd.transfer.naming import names_of_imported, names_of_pulled
from pyctrd.transfer.requests import ExtraReference, ImageStore

DIGEST = "sha256:" + "0" * 64
NGINX = "docker.io/library/nginx:latest"


def archived(full: str = "", short: str = "") -> Descriptor:
    names = {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": short}
    return Descriptor("manifest", DIGEST, 1, {key: name for key, name in names.items() if name})


def prefix(name: str, *, overwrite: bool = False, digest: bool = False, skip: bool = False) -> ExtraReference:
    return ExtraReference(name, True, overwrite, digest, skip)


@pytest.mark.parametrize(
    ("reference", "descriptor", "names"),
    [
        # A bare tag is completed.
        (prefix("import", overwrite=True), archived(short="v1"), ["import:v1"]),
        (prefix("example.com/app"), archived(short="v1"), ["example.com/app:v1"]),
        # A full name passes where the client lets it, or where it has the prefix.
        (prefix("import", overwrite=True), archived(NGINX), [NGINX]),
        (prefix("import", overwrite=True), archived(short="example.com/app:v1"), ["example.com/app:v1"]),
        (prefix("docker.io/library/nginx"), archived(NGINX), [NGINX]),
        (prefix("docker.io/library"), archived(NGINX, "latest"), [NGINX]),
        # Nothing that a terminal would obey, or a shell, wherever it is listed or completed.
        (prefix("import", overwrite=True), archived("example.com/$(halt):v1", "v1"), []),
        (prefix("import", overwrite=True), archived(short="v1;halt"), []),
        (prefix("import", overwrite=True), archived("[::1]:5000/a+b@sha256:0"), ["[::1]:5000/a+b@sha256:0"]),
        (prefix("import", overwrite=True), archived("example.com/\x1b[2J:v1", "v1"), []),
        (prefix("import", overwrite=True), archived(short="v1\x07"), []),
        # CVE-2026-50195: and nowhere else.
        (prefix("example.com/app"), archived(NGINX), []),
        (prefix("example.com/app"), archived(NGINX, "latest"), []),
        (prefix("docker.io/library/ngin"), archived(NGINX), []),
        (prefix("example.com/app"), archived(short=NGINX), []),
        (prefix(""), archived(NGINX), []),
        (prefix(""), archived(short="v1"), []),
        (ExtraReference("name"), archived(NGINX), []),
        # By digest.
        (prefix("import", digest=True), archived(), [f"import@{DIGEST}"]),
        (prefix("import", overwrite=True, digest=True), archived(short="v1"), ["import:v1", f"import@{DIGEST}"]),
        (prefix("import", overwrite=True, digest=True, skip=True), archived(short="v1"), ["import:v1"]),
        (prefix("import", digest=True, skip=True), archived(), [f"import@{DIGEST}"]),
        (prefix("import", overwrite=True), archived(), []),
    ],
)
def test_names_from_an_archive(reference: ExtraReference, descriptor: Descriptor, names: list[str]) -> None:
    assert names_of_imported((reference,), descriptor) == names


def test_names_of_what_was_pulled() -> None:
    destination = ImageStore(
        "main", extra_references=(ExtraReference("a"), ExtraReference("b", add_digest=True), prefix("c"))
    )

    assert names_of_pulled(destination, DIGEST) == ["main", "a", f"b@{DIGEST}"]
    assert names_of_pulled(ImageStore(""), DIGEST) == []
