"""Image names as docker's users write them."""

import re
from typing import Final

from pyctr.errors import CommandError

_NAME: Final = re.compile(
    r"(?P<domain>(?:[A-Za-z0-9]+(?:[.-]+[A-Za-z0-9]+)*|\[[0-9a-fA-F:]+\])(?::\d+)?)/"
    r"(?P<path>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@[a-z0-9]+:[0-9a-f]{32,})?"
)


def complete(text: str) -> str:
    """Return the full name that `text` stands for: docker.io, library/ and :latest filled in.

    Raises CommandError for what cannot be a name.
    """
    first, slash, rest = text.partition("/")
    if not slash or not (re.search(r"[.:A-Z\[]", first) or first == "localhost"):
        first, rest = "docker.io", text
    if first == "index.docker.io":
        first = "docker.io"
    if first == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    match = _NAME.fullmatch(f"{first}/{rest}")
    if match is None or re.fullmatch(r"[0-9a-f]{64}", text):
        raise CommandError(f"{text!r} is not the name of an image; a name is [HOST/]PATH[:TAG][@DIGEST] in lower case")
    return match.group(0) if match["tag"] or match["digest"] else f"{match.group(0)}:latest"


def familiar(name: str) -> str:
    """Return a full name as docker shows it: without docker.io and library/."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def host_of(name: str) -> str:
    """Return the registry of a full name."""
    return name.partition("/")[0]


def split_tag(name: str) -> tuple[str, str]:
    """Return repository and tag of a name; "<none>" where there is no tag."""
    bare = name.partition("@")[0]
    head, colon, tag = bare.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (bare, "<none>")
