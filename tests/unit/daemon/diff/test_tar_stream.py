"""Our tar reader against the standard library's writer, and against archives that nobody should write."""

import contextlib
import io
import tarfile
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctrd.diff import tar_stream as tar
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.tar_stream import ByteStream, Entry, TarReader
from support.layers import END, archive, directory, entry, hard_link, header, pax, record, symlink


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, chunk: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """Return all entries with their content."""
    reader = TarReader(ByteStream(chunked(data, chunk)))
    return [(found, b"".join(reader.content())) for found in reader]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
MEMBERS = st.lists(
    st.builds(
        lambda name, data, mode, uid, gid, mtime, kind, link: entry(
            name, data if kind == tarfile.REGTYPE else None, type=kind, mode=mode, uid=uid, gid=gid, mtime=mtime,
            linkname=link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
        ),
        PATHS,
        st.binary(max_size=2000),
        st.integers(0, 0o7777),
        st.integers(0, 2**31),
        st.integers(0, 2**31),
        st.integers(-(2**33), 2**35),
        st.sampled_from(
            (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
        ),
        PATHS,
    ),
    max_size=8,
)  # fmt: skip


@given(MEMBERS, st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)), st.sampled_from((512, 700, 1 << 16)))
def test_reads_what_tarfile_writes(members: list[tuple[tarfile.TarInfo, bytes]], format: int, chunk: int) -> None:
    """Names, kinds, numbers and content survive, wherever chunks end."""
    found = read(archive(members, format), chunk)

    assert len(found) == len(members)
    for (ours, content), (theirs, data) in zip(found, members, strict=True):
        assert ours.name.rstrip(b"/").decode() == theirs.name.rstrip("/")
        assert bytes([ours.kind]) == theirs.type
        assert (ours.mode, ours.uid, ours.gid) == (theirs.mode, theirs.uid, theirs.gid)
        assert ours.mtime_ns == theirs.mtime * 10**9
        assert ours.link.decode() == theirs.linkname
        assert content == data


@given(st.binary(max_size=3000))
def test_noise_is_refused_and_nothing_else(data: bytes) -> None:
    """Whatever the bytes are, there is an answer or an ArchiveError."""
    with contextlib.suppress(ArchiveError):
        read(data)


@given(st.data())
def test_a_damaged_archive_is_refused_or_read(data: st.DataObject) -> None:
    """Bytes changed at random in a good archive raise nothing but ArchiveError."""
    good = archive([entry("a" * 120, b"x" * 600, pax_headers={"SCHILY.xattr.user.k": "v"}), symlink("l", "t" * 200)])
    damaged = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArchiveError):
        read(bytes(damaged))


def test_extended_attributes_and_fractions_of_seconds() -> None:
    """PAX records say more than a header can."""
    headers = {"SCHILY.xattr.user.key": "a=b", "mtime": "1234567890.123456789", "atime": "2.5", "uid": "4000000000"}
    ((found, _),) = read(archive([entry("f", b"", pax_headers=headers)]))

    assert found.xattrs == {b"user.key": b"a=b"}
    assert (found.mtime_ns, found.atime_ns) == (1234567890_123456789, 2_500_000_000)
    assert found.uid == 4_000_000_000


def test_binary_attributes_are_kept_as_they_are() -> None:
    """An attribute's value may hold newlines and NULs: lengths decide, not lines."""
    value = b"\x01\x00\x00\x02\n\n5 x=y\n"
    ((found, _),) = read(pax(record(b"SCHILY.xattr.security.capability", value)) + header() + END)

    assert found.xattrs == {b"security.capability": value}


def test_an_old_archive_without_magic() -> None:
    """v7: no type flags; a name that ends in a slash is a directory, a checksum may be of signed characters."""

    def v7(block: bytearray) -> None:
        block[257:265] = bytes(8)

    (folder, _), (file, _) = read(header(b"d/", b"\0", change=v7) + header(b"d/f", b"\0", change=v7) + END)
    assert (folder.kind, file.kind) == (tar.DIRECTORY, tar.REGULAR)

    block = bytearray(header("ü".encode() * 3))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    ((named, _),) = read(bytes(block) + END)
    assert named.name == "ü".encode() * 3


def test_ustar_and_star_prefixes() -> None:
    """The prefix field goes before the name; star keeps times behind a shorter one."""

    def prefixed(block: bytearray) -> None:
        block[345:350] = b"up/to"

    def star(block: bytearray) -> None:
        prefixed(block)
        block[476:500] = b"00000000001 00000000001 "
        block[508:512] = b"tar\0"

    (ustar, _), (from_star, _) = read(header(b"f", change=prefixed) + header(b"f", change=star) + END)
    assert ustar.name == from_star.name == b"up/to/f"


def test_a_global_header_is_a_comment() -> None:
    """git writes one; containerd ignores it."""
    ((found, _),) = read(pax(record(b"comment", b"x") + record(b"uid", b"7"), b"g") + header() + END)
    assert found.uid == 0


def test_an_empty_record_takes_back_an_earlier_one() -> None:
    """As POSIX has it."""
    ((found, _),) = read(pax(record(b"path", b"other") + record(b"path", b"")) + header(b"f") + END)
    assert found.name == b"f"


def test_the_end_is_two_blocks_of_zeros_or_the_end() -> None:
    """What follows the marker is not looked at; without a marker, the end will do."""
    one = archive([entry("f", b"x")])[:1024]
    assert len(read(one)) == len(read(one + bytes(512))) == len(read(one + END + b"garbage" * 100)) == 1
    with pytest.raises(ArchiveError, match="single block"):
        read(one + bytes(512) + one)


def old_sparse(*segments: tuple[int, int], real_size: int, size: int, extended: bool = False) -> bytes:
    def sparse(block: bytearray) -> None:
        block[257:265] = b"ustar  \0"
        for at, (offset, length) in enumerate(segments[:4]):
            block[386 + 24 * at : 410 + 24 * at] = b"%011o\0%011o\0" % (offset, length)
        block[482] = extended
        block[483:495] = b"%011o\0" % real_size

    return header(b"f", b"S", b"%011o\0" % size, sparse)


def test_old_sparse_files() -> None:
    """GNU's map in the header and in blocks behind it."""
    more = b"".join(b"%011o\0%011o\0" % (at, 1) for at in (50, 60)).ljust(512, b"\0")
    data = old_sparse((0, 2), (10, 3), (20, 1), (30, 1), real_size=100, size=9, extended=True)
    ((found, content),) = read(data + more + b"abcdefghi".ljust(512, b"\0") + END)

    assert found.segments == [(0, 2), (10, 3), (20, 1), (30, 1), (50, 1), (60, 1)]
    assert (found.real_size, content) == (100, b"abcdefghi")


SPARSE_1_0 = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")


@pytest.mark.parametrize(
    "data",
    [
        pax(SPARSE_1_0 + record(b"GNU.sparse.name", b"real") + record(b"GNU.sparse.realsize", b"100"))
        + header(b"GNUSparseFile.0/f", size=b"%011o\0" % 517)
        + b"2\n0\n2\n10\n3\n".ljust(512, b"\0"),
        pax(
            record(b"GNU.sparse.name", b"real") + record(b"GNU.sparse.size", b"100")
            + record(b"GNU.sparse.map", b"0,2,10,3")
        ) + header(size=b"%011o\0" % 5),
        pax(
            record(b"GNU.sparse.size", b"100") + record(b"path", b"real")
            + record(b"GNU.sparse.offset", b"0") + record(b"GNU.sparse.numbytes", b"2")
            + record(b"GNU.sparse.offset", b"10") + record(b"GNU.sparse.numbytes", b"3")
        ) + header(size=b"%011o\0" % 5),
    ],
    ids=["1.0", "0.1", "0.0"],
)  # fmt: skip
def test_pax_sparse_files(data: bytes) -> None:
    """All three formats give the same file."""
    ((found, content),) = read(data + b"abcde".ljust(512, b"\0") + END)

    assert (found.name, found.segments, found.real_size, content) == (b"real", [(0, 2), (10, 3)], 100, b"abcde")


NEGATIVE = b"\xff" * 11 + b"\xfe"

HOSTILE = {
    "negative size": header(size=NEGATIVE),
    "size beyond 63 bits": header(size=b"\x80" + b"\xff" * 11),
    "size with a sign": header(size=b"-0000000001\0"),
    "size with an underscore": header(size=b"0000000_001\0"),
    "size that is no octal number": header(size=b"00000000009\0"),
    "PAX size that is negative": pax(record(b"size", b"-1")) + header(),
    "PAX size beyond 63 bits": pax(record(b"size", b"9" * 19)) + header(),
    "PAX size of a million digits": pax(record(b"size", b"9" * 1000000)) + header(),
    "uid that chown takes for none": pax(record(b"uid", b"4294967295")) + header(),
    "extended header too long": header(b"x", b"x", b"%011o\0" % (2 << 20)),
    "long name too long": header(b"x", b"L", b"\x80" + bytes(4) + b"\x40" + bytes(6)),
    "record without length": pax(b"x path=a\n") + header(),
    "record of length 0": pax(b"0 path=a\n") + header(),
    "record shorter than its length": pax(b"99999 path=a\n") + header(),
    "record without newline": pax(b"9 path=ab") + header(),
    "record without key": pax(b"5 =a\n") + header(),
    "NUL in a name": pax(record(b"path", b"a\0b")) + header(),
    "time that is none": pax(record(b"mtime", b"1e9")) + header(),
    "unknown type": header(flag=b"V"),
    "wrong checksum": header()[:-1] + b"\1",
    "cut in a header": header()[:300],
    "cut in content": header(size=b"00000001000\0") + b"x",
    "cut after an extended header": pax(record(b"path", b"a")),
    "sparse: negative offset": old_sparse((0, 1), real_size=9, size=1).replace(b"%011o\0" % 0, NEGATIVE),
    "sparse: out of order": old_sparse((10, 1), (5, 1), real_size=20, size=2) + bytes(512),
    "sparse: beyond the end": old_sparse((10, 5), real_size=12, size=5) + bytes(512),
    "sparse: more data than the archive has": old_sparse((0, 5), real_size=12, size=2) + bytes(512),
    "sparse: map without end": pax(SPARSE_1_0 + record(b"GNU.sparse.realsize", b"9"))
    + header(size=b"%011o\0" % 1024) + b"9" * 1024,
    "sparse: too many segments": pax(SPARSE_1_0 + record(b"GNU.sparse.realsize", b"9"))
    + header(size=b"%011o\0" % 512) + b"999999999\n".ljust(512, b"\0"),
    "sparse: odd map": pax(record(b"GNU.sparse.map", b"1,2,3") + record(b"GNU.sparse.size", b"9")) + header(),
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_cve_2025_8194_hostile_headers_are_refused(data: bytes) -> None:
    """Nothing negative, endless or huge gets past the reader; also CVE-2025-58183."""
    with pytest.raises(ArchiveError):
        read(data + END)


@pytest.mark.parametrize(
    "data",
    [
        pax(b"".join(record(b"k%d" % n, b"v") for n in range(20000))) + header(),
        pax(b"1" * (1 << 20)) + header(),
        b"".join(pax(record(b"path", b"a" * 400)) for _ in range(2000)) + header(),
        pax(record(b"GNU.sparse.map", b"0,0," * 20000 + b"0,0") + record(b"GNU.sparse.size", b"0")) + header(),
    ],
    ids=["many records", "one long number", "many headers", "many segments"],
)
def test_cve_2024_6232_bombs_cost_little_memory(data: bytes) -> None:
    """Extended headers as large as they may be take no more than a few times their size."""
    tracemalloc.start()
    try:
        read(data + END)
    except ArchiveError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 << 20


def test_content_that_is_not_asked_for_is_passed_over() -> None:
    """The next entry begins where the last one's content ends, read or not."""
    data = archive([entry("a", b"x" * 1000), directory("d"), entry("b", b"y"), hard_link("c", "b")])
    names = [found.name for found in TarReader(ByteStream(chunked(data, 600)))]
    assert names == [b"a", b"d/", b"b", b"c"] or names == [b"a", b"d", b"b", b"c"]


def test_draining_reaches_the_real_end() -> None:
    """A layer's digest covers what lies behind the end of the archive too."""
    data = archive([entry("a", b"x")]) + b"trailer" * 1000
    chunks = io.BytesIO(data)
    stream = ByteStream(iter(lambda: chunks.read(4096), b""))
    for _ in TarReader(stream):
        pass
    stream.drain()
    assert chunks.tell() == len(data)
