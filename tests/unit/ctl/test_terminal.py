"""Detach keys."""

import os

import click
import pytest

from pyctr import terminal
from pyctr.terminal import DetachKeys


@pytest.mark.parametrize(
    ("text", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,CTRL-C", b"a\x03"), ("ctrl-\\", b"\x1c"), ("", b"")]
)
def test_key_sequences(text: str, keys: bytes) -> None:
    assert terminal.parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "ab", "ctrl-1", "ä"])
def test_sequences_that_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        terminal.parse_detach_keys(text)


def test_the_sequence_is_found_across_reads() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"ls\n\x10") == (b"ls\n", False)
    assert keys.feed(b"\x11rest") == (b"", True)


def test_keys_that_only_began_it_are_passed_on() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"x") == (b"\x10x", False)
    assert keys.feed(b"\x10\x10") == (b"\x10", False)
    assert keys.feed(b"\x11") == (b"", True)


def test_no_keys_never_detach() -> None:
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


def test_a_terminal_that_has_gone_needs_no_settings() -> None:
    keeper_fd, fd = os.openpty()
    with terminal.raw(fd):
        os.close(keeper_fd)
    os.close(fd)
