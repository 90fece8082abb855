"""D-Bus messages, byte for byte, and calls over a real socket."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_shim.oci.cgroups import dbus
from support.dbus_peer import DEADLINE_SECONDS, MARK, Peer, reply


def test_a_call_is_what_the_specification_draws() -> None:
    packed = dbus.pack_message(dbus.CALL, 7, {1: "/a", 2: "i.f", 3: "Do"}, "su", ("hi", 5))

    assert packed == (
        b"l\x01\x00\x01" + struct.pack("<III", 12, 7, 56)
        + b"\x01\x01o\0" + b"\x02\0\0\0/a\0" + bytes(5)
        + b"\x02\x01s\0" + b"\x03\0\0\0i.f\0" + bytes(4)
        + b"\x03\x01s\0" + b"\x02\0\0\0Do\0" + bytes(5)
        + b"\x08\x01g\0" + b"\x02su\0"
        + b"\x02\0\0\0hi\0" + bytes(1) + struct.pack("<I", 5)
    )  # fmt: skip


def test_an_array_is_padded_even_if_it_is_empty() -> None:
    packed = dbus.pack_message(dbus.CALL, 1, {}, "yat", (1, []))

    assert packed[-8:] == b"\x01\0\0\0" + bytes(4)


VARIANTS = st.one_of(
    st.tuples(st.just("s"), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))),
    st.tuples(st.just("t"), st.integers(0, (1 << 64) - 1)),
    st.tuples(st.just("au"), st.lists(st.integers(0, (1 << 32) - 1))),
    st.tuples(st.just("ay"), st.lists(st.integers(0, 255))),
    st.tuples(st.just("a{sv}"), st.lists(st.tuples(st.text("ab"), st.tuples(st.just("d"), st.floats(-1, 1))))),
    st.tuples(st.just("x"), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.tuples(st.just("q"), st.integers(0, 65535)),
    st.tuples(st.just("a(ss)"), st.lists(st.tuples(st.just("x"), st.text("abc")))),
)


@given(st.lists(st.tuples(st.text("ab"), VARIANTS)), st.booleans())
def test_what_is_packed_is_read_again(properties: list[Any], flag: bool) -> None:
    packed = dbus.pack_message(dbus.SIGNAL, 3, {3: "Name"}, "a(sv)b", (properties, flag))

    message = dbus.unpack_message(packed)

    assert (message.kind, message.member, message.body) == (dbus.SIGNAL, "Name", [properties, int(flag)])


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(answer: Callable[[str, list[Any]], list[bytes]], greeting: bytes = b"OK 1234\r\n") -> Peer:
        made.append(Peer(tmp_path / "bus", answer, greeting=greeting))
        return made[-1]

    yield make
    for item in made:
        item.close()


def test_a_call_gets_its_own_answer(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    """Signals and answers to others come between."""
    signal = dbus.pack_message(dbus.SIGNAL, 1, {3: "Noise"}, "s", ("x",))
    peer(lambda *_: [signal, reply(99, "s", "not yours"), reply(MARK, "so", "yours", "/p")])

    with dbus.connect(str(tmp_path / "bus"), "", DEADLINE_SECONDS) as connection:
        assert connection.call("/", "i.f", "Do", "s", "x") == ["yours", "/p"]


def test_an_error_is_raised_by_its_name(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    peer(lambda *_: [dbus.pack_message(dbus.ERROR, 1, {4: "org.x.No", 5: MARK}, "s", ("not today",))])

    with dbus.connect(str(tmp_path / "bus"), "", DEADLINE_SECONDS) as connection:
        with pytest.raises(dbus.DBusError, match=r"not today \(org\.x\.No\)") as caught:
            connection.call("/", "i.f", "Do")
        assert caught.value.name == "org.x.No"


def test_a_bus_is_greeted_and_asked_for_signals(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    made = peer(lambda *_: [])

    with dbus.connect(str(tmp_path / "bus"), "org.x", DEADLINE_SECONDS) as connection:
        connection.listen("rule")

    assert made.calls == [("Hello", []), ("AddMatch", ["rule"])]


def test_who_is_not_let_in_is_told(tmp_path: Path, peer: Callable[..., Peer]) -> None:
    peer(lambda *_: [], greeting=b"REJECTED EXTERNAL\r\n")

    with pytest.raises(dbus.DBusError, match="not let in"):
        dbus.connect(str(tmp_path / "bus"), "", DEADLINE_SECONDS)


@pytest.mark.parametrize("bytes_", [b"B" + bytes(15), b"l\x02\0\x01" + struct.pack("<III", 1 << 30, 1, 0)])
def test_what_is_no_message_of_a_sane_size_is_refused(tmp_path: Path, peer: Callable[..., Peer], bytes_: bytes) -> None:
    peer(lambda *_: [bytes_])

    with (
        dbus.connect(str(tmp_path / "bus"), "", DEADLINE_SECONDS) as connection,
        pytest.raises(dbus.DBusError),
    ):
        connection.call("/", "i.f", "Do")
