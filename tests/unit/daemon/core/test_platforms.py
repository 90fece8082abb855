"""Platforms: one spelling, and what runs where."""

import pytest

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.platforms import Platform, best_first, matcher, normalize, parse_platform, runnable_on

HOST = Platform("linux", "amd64")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm/6", "linux/arm/v6"),
        ("Linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("windows", "windows/amd64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
    ],
)
def test_platforms_have_one_spelling(text: str, canonical: str) -> None:
    platform = parse_platform(text, HOST)
    assert str(platform) == canonical
    assert normalize(platform) == platform


@pytest.mark.parametrize("text", ["", "linux/", "/amd64", "linux/amd64/v1/x", "toaster", "linux/a md64"])
def test_no_platforms(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_platform(text, HOST)


def test_what_runs_where() -> None:
    def names(text: str) -> list[str]:
        return [str(platform) for platform in runnable_on(parse_platform(text, HOST))]

    assert names("linux/amd64") == ["linux/amd64", "linux/386"]
    assert names("linux/amd64/v3") == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
    assert names("linux/arm/v7") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert names("linux/arm64")[:2] == ["linux/arm64", "linux/arm/v8"]
    assert names("linux/arm64/v9.1")[:3] == ["linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.6"]
    assert names("linux/s390x") == ["linux/s390x"]


def test_the_best_match_comes_first_and_attestations_never() -> None:
    index = ["linux/386", "unknown/unknown", "linux/arm64", "linux/amd64"]
    found = best_first(index, lambda text: parse_platform(text, HOST), HOST)
    assert found == ["linux/amd64", "linux/386"]
    assert matcher(HOST)(Platform("unknown", "unknown")) is None
