"""Platforms: what a program was built for, and which of them a machine can run.

Source: OCI image-spec, image-index.md "platform"; github.com/containerd/platforms.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, TypeVar

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.values import dataclass

_T = TypeVar("_T")

_OS: Final = {"macos": "darwin"}
_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "ppc64el": ("ppc64le", ""),
}
_KNOWN_ARCHITECTURES: Final = frozenset(
    {
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips",
        "mips64",
        "mips64le",
        "mipsle",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    }
)
_KNOWN_OS: Final = frozenset({"aix", "darwin", "freebsd", "linux", "netbsd", "openbsd", "solaris", "wasi", "windows"})
_PART: Final = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\((?P<version>[A-Za-z0-9_.+-]*)\))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and its variant, in the spelling of Go's GOOS and GOARCH."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return `os[(version)]/architecture[/variant]`."""
        os = f"{self.os}({self.os_version})" if self.os_version else self.os
        return "/".join(part for part in (os, self.architecture, self.variant) if part)


def normalize(platform: Platform) -> Platform:
    """Return `platform` in its one canonical spelling: aarch64 is arm64, arm is arm/v7, arm64/v8 is arm64."""
    os = _OS.get(platform.os.lower(), platform.os.lower())
    architecture = platform.architecture.lower()
    architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = platform.variant.lower() or implied
    if variant[:1].isdigit():
        variant = f"v{variant}"
    match architecture:
        case "arm":
            variant = variant or "v7"
        case "arm64" if variant in ("v8", "v8.0"):
            variant = ""
        case "amd64" if variant == "v1":
            variant = ""
    return replace(platform, os=os, architecture=architecture, variant=variant)


def parse_platform(text: str, host: Platform) -> Platform:
    """Return the platform that `text` means; what it leaves out is taken from `host`.

    `text` is OS, ARCHITECTURE, OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT. Raises InvalidArgument.
    """
    first, *rest = text.split("/")
    match = _PART.fullmatch(first)
    if match is None or len(rest) > 2 or not all(_PART.fullmatch(part) for part in rest):
        raise InvalidArgument(f'"{text}" is not a platform: it must be OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT')
    name, version = match["name"], match["version"] or ""
    if rest:
        return normalize(Platform(name, rest[0], "".join(rest[1:]), os_version=version))
    if _OS.get(name.lower(), name.lower()) in _KNOWN_OS:
        return normalize(Platform(name, host.architecture, host.variant, os_version=version))
    alone = normalize(Platform(host.os, name))
    if alone.architecture not in _KNOWN_ARCHITECTURES:
        raise InvalidArgument(f'"{text}": unknown operating system or architecture')
    return alone


def runnable_on(host: Platform) -> list[Platform]:
    """Return the platforms whose programs run on `host`, the best first."""
    host = normalize(host)
    number = int(host.variant[1:]) if re.fullmatch(r"v[0-9]+", host.variant) else 0
    names: list[tuple[str, str]] = [(host.architecture, host.variant)]
    match host.architecture:
        case "amd64":
            names += [("amd64", f"v{version}") for version in range(number - 1, 0, -1)] + [("386", "")]
        case "arm":
            names += [("arm", f"v{version}") for version in range(number - 1, 4, -1)]
        case "arm64":
            names += _older_arm64(host.variant) + [("arm", f"v{version}") for version in range(8, 4, -1)]
    return [normalize(Platform(host.os, architecture, variant)) for architecture, variant in names]


def matcher(*wanted: Platform) -> Callable[[Platform], int | None]:
    """Return a function that ranks a platform: 0 is the best match with `wanted`, None is no match at all."""
    ranking: dict[tuple[str, str, str], int] = {}
    for platform in (choice for host in wanted for choice in runnable_on(host)):
        ranking.setdefault((platform.os, platform.architecture, platform.variant), len(ranking))

    def rank(platform: Platform) -> int | None:
        normal = normalize(platform)
        return ranking.get((normal.os, normal.architecture, normal.variant))

    return rank


def best_first(items: Iterable[_T], platform_of: Callable[[_T], Platform], *wanted: Platform) -> list[_T]:
    """Return those of `items` that match `wanted`, the best first and otherwise in their order."""
    rank = matcher(*wanted)
    ranked = [(rank(platform_of(item)), item) for item in items]
    return [item for _, item in sorted(((r, i) for r, i in ranked if r is not None), key=lambda pair: pair[0])]


def _older_arm64(variant: str) -> list[tuple[str, str]]:
    """Return the revisions below vMAJOR.MINOR: v9.N runs v9.N-1 … v9.0 and v8.N+5 … v8."""
    match = re.fullmatch(r"v([89])(?:\.([0-9]{1,2}))?", variant)
    if match is None:
        return []
    major, minor = match[1], int(match[2] or 0)
    same = [_arm64(major, revision) for revision in range(minor - 1, -1, -1)]
    eighth = [_arm64("8", revision) for revision in range(minor + 5, -1, -1)] if major == "9" else []
    return [("arm64", revision) for revision in same + eighth]


def _arm64(major: str, minor: int) -> str:
    return f"v{major}.{minor}" if minor else f"v{major}"
