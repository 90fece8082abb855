"""Image references: `domain/path[:tag][@digest]`, and the short forms that people type.

Source: github.com/distribution/reference, OCI distribution-spec "Pulling manifests".
"""

import re
from typing import Final

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.values import dataclass

DEFAULT_DOMAIN: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LEGACY_DOMAIN: Final = "index.docker.io"
_OFFICIAL: Final = "library/"
_MAX_NAME: Final = 255

_LABEL: Final = r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
_DOMAIN: Final = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[A-Fa-f0-9:]+\])(?::[0-9]+)?"
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST: Final = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
_REFERENCE: Final = re.compile(
    rf"(?P<domain>{_DOMAIN})/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A full reference: `domain` is a registry's host and port, `path` a repository; tag and digest may be ""."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository with its registry."""
        return f"{self.domain}/{self.path}"

    @property
    def object(self) -> str:
        """What to ask the registry for: the digest if there is one, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """Return the whole reference, as images are named in the store."""
        return self.name + self._suffix()

    def familiar(self) -> str:
        """Return the short form that people know: without docker.io/ and library/."""
        if self.domain != DEFAULT_DOMAIN:
            return str(self)
        path = self.path.removeprefix(_OFFICIAL)
        return (self.path if "/" in path else path) + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(text: str) -> Reference:
    """Return the reference that `text` spells out in full, with the registry's host.

    Raises InvalidArgument if it does not; nothing is filled in.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f'invalid reference "{text}": a name is HOST/PATH[:TAG][@DIGEST], its path in lower case')
    reference = Reference(match["domain"], match["path"], match["tag"] or "", match["digest"] or "")
    if len(reference.name) > _MAX_NAME:
        raise InvalidArgument(f'invalid reference "{text}": its name is longer than {_MAX_NAME} characters')
    return reference


def normalize_reference(text: str) -> Reference:
    """Return what docker's users mean by `text`: docker.io, library/ and :latest filled in where left out.

    Raises InvalidArgument for what cannot be a reference, such as the 64 hexadecimal digits of an id.
    """
    if _ID.fullmatch(text):
        raise InvalidArgument(f'invalid reference "{text}": this is an id, not a name')
    first, slash, rest = text.partition("/")
    if slash and (re.search(r"[.:A-Z]", first) or first == "localhost"):
        domain, remainder = first, rest
    else:
        domain, remainder = DEFAULT_DOMAIN, text
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    reference = parse_reference(f"{domain}/{remainder}")
    if reference.object:
        return reference
    return Reference(reference.domain, reference.path, DEFAULT_TAG)
