"""What can be served, and what cannot."""

from pathlib import Path

import pytest

from pyctrd.core.addresses import Tcp, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/run/s.sock", Path("/run/s.sock")),
        ("unix:///run/s.sock", Path("/run/s.sock")),
        ("unix:/run/s.sock", Path("/run/s.sock")),
        ("tcp://localhost:2376", Tcp("localhost", 2376)),
        ("tcp://[::1]:1", Tcp("::1", 1)),
    ],
)
def test_paths_and_ports_are_addresses(text: str, expected: Path | Tcp) -> None:
    assert parse_address(text) == expected


def test_a_port_is_written_as_it_is_read() -> None:
    for text in ("tcp://localhost:2376", "tcp://[::1]:1"):
        assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    ["run/s", "", "unix://run", "fd://", "fd://3", "http://h:1", "tcp://h", "tcp://:1", "tcp://h:0", "tcp://h:65536",
     "tcp://::1:1", "tcp://[h]:1", "tcp://h:x", f"/{'a' * 90}"],
)  # fmt: skip
def test_all_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)
