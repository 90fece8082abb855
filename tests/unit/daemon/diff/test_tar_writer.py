"""Our tar writer against two readers: the standard library's and our own."""

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from pyctrd.diff import tar_stream as tar
from pyctrd.diff.tar_stream import ByteStream, TarReader
from pyctrd.diff.tar_writer import TarWriter
from support.layers import header

NAMES = st.lists(st.binary(min_size=1, max_size=120).filter(lambda name: not set(b"/\0") & set(name)), min_size=1).map(
    b"/".join
)
ENTRIES = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "kind": st.sampled_from((tar.REGULAR, tar.DIRECTORY, tar.SYMLINK, tar.HARD_LINK, tar.CHARACTER, tar.FIFO)),
            "mode": st.integers(0, 0o7777),
            "uid": st.integers(0, (1 << 32) - 2),
            "gid": st.integers(0, (1 << 32) - 2),
            "mtime": st.integers(-(1 << 40), 1 << 40),
            "link": NAMES,
            "device": st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)),
            "xattrs": st.dictionaries(st.sampled_from((b"security.capability", b"user.x")), st.binary(min_size=1)),
            "content": st.binary(max_size=1500),
        }
    ),
    max_size=6,
)


def write(entries: list[dict[str, object]]) -> bytes:
    pieces: list[bytes] = []
    writer = TarWriter(pieces.append)
    for entry in entries:
        fields = dict(entry)
        content = fields.pop("content") if fields["kind"] == tar.REGULAR else fields.pop("content") and b""
        assert isinstance(content, bytes)
        if fields["kind"] not in (tar.SYMLINK, tar.HARD_LINK):
            del fields["link"]
        if fields["kind"] != tar.CHARACTER:
            del fields["device"]
        writer.add(size=len(content), **fields)  # type: ignore[arg-type]
        if content:
            writer.content(content)
        writer.pad(len(content))
    writer.finish()
    return b"".join(pieces)


@given(ENTRIES)
def test_both_readers_read_what_we_write(entries: list[dict[str, object]]) -> None:
    """Whatever the names, numbers and attributes are."""
    data = write(entries)
    assert len(data) % 512 == 0
    reader = TarReader(ByteStream(iter([data])))
    ours = [(found, b"".join(reader.content())) for found in reader]
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as theirs:
        standard = theirs.getmembers()

    assert len(ours) == len(standard) == len(entries)
    for (found, content), info, entry in zip(ours, standard, entries, strict=True):
        kind = entry["kind"]
        name = entry["name"]
        assert isinstance(name, bytes)
        assert found.name.rstrip(b"/") == name
        assert (found.kind, found.mode, found.uid, found.gid) == (kind, entry["mode"], entry["uid"], entry["gid"])
        assert (info.mode, info.uid, info.gid, info.mtime) == (
            entry["mode"], entry["uid"], entry["gid"], entry["mtime"],
        )  # fmt: skip
        assert found.mtime_ns == entry["mtime"] * 10**9  # type: ignore[operator]
        assert found.link == (entry["link"] if kind in (tar.SYMLINK, tar.HARD_LINK) else b"")
        assert (found.major, found.minor) == (entry["device"] if kind == tar.CHARACTER else (0, 0))
        assert (found.xattrs or {}) == entry["xattrs"]
        assert content == (entry["content"] if kind == tar.REGULAR else b"")


def test_an_ordinary_entry_is_one_block() -> None:
    """Names that a prefix can hold take no extended header."""
    name = b"a" * 90 + b"/" + b"b" * 90
    data = write([{"name": name, "kind": tar.FIFO, "content": b"", "link": b"", "device": (0, 0)}])
    assert len(data) == 3 * 512
    assert data[257:265] == header()[257:265]


def test_the_length_of_a_record_counts_its_own_digits() -> None:
    """Also where counting them makes it one digit longer."""
    for size in range(80, 110):
        data = write([{"name": "é".encode() * size, "kind": tar.FIFO, "content": b"", "link": b"", "device": (0, 0)}])
        (found,) = TarReader(ByteStream(iter([data])))
        assert found.name == "é".encode() * size
