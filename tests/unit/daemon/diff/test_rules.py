"""The rules of layers that need no file: media types, mounts, names, limits, the system call filter."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyctr_sys.mount import MountFlag
from pyctr_wire.errors import Unimplemented, UnknownError
from pyctrd.diff import cage, messages
from pyctrd.diff.compression import Compression
from pyctrd.diff.errors import ArchiveError
from pyctrd.diff.limits import Limits
from pyctrd.diff.media_types import compression_for, compression_of
from pyctrd.diff.mounts import flags_and_data, layers_of, overlay_of, split_lowers
from pyctrd.diff.whiteouts import clean, hidden_by

DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
OCI = "application/vnd.oci.image.layer.v1.tar"


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (DOCKER, Compression.SNIFF),
        (f"{DOCKER}.gzip", Compression.SNIFF),
        (f"{DOCKER}.zstd", Compression.SNIFF),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Compression.SNIFF),
        (OCI, Compression.NONE),
        (f"{OCI}+gzip", Compression.SNIFF),
        (f"{OCI}+zstd", Compression.SNIFF),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", Compression.NONE),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Compression.SNIFF),
    ],
)
def test_media_types_that_can_be_unpacked(media_type: str, compression: Compression) -> None:
    """Docker's and OCI's; all are looked into but OCI's without a suffix."""
    assert compression_of(media_type) is compression


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", f"{OCI}+bzip2", f"{OCI}.gzip.enc", f"{DOCKER}x", f"{OCI}+gzip+encrypted"]
)
def test_media_types_that_cannot(media_type: str) -> None:
    """containerd's words and code for reading, another code for writing."""
    with pytest.raises(UnknownError) as error:
        compression_of(media_type)
    assert str(error.value) == f"failed to get stream processor for {media_type}: no processor for media-type"
    with pytest.raises(Unimplemented, match="unsupported diff media type"):
        compression_for(media_type)
    with pytest.raises(Unimplemented):
        compression_for(f"{DOCKER}.gzip")


def test_overlays() -> None:
    """Their directories, however the names are written."""
    options = ("workdir=/w", "upperdir=/u", "lowerdir=/a:/b", "index=off", "userxattr")
    overlay = overlay_of([("overlay", "overlay", "", options)])
    assert overlay is not None
    assert (overlay.upper, overlay.lowers, overlay.userxattr) == ("/u", ("/a", "/b"), True)
    assert overlay.as_lowers().lowers == ("/u", "/a", "/b")
    assert layers_of([("overlay", "overlay", "", options)]) == ("/u", "/a", "/b")
    assert layers_of([("bind", "/a", "", ("ro", "rbind"))]) == ("/a",)
    assert layers_of([("ext4", "/dev/x", "", ())]) is None
    assert overlay_of([("bind", "/a", "", ())]) is None
    assert split_lowers(r"/a\:b:/c") == ("/a:b", "/c")


def test_redirected_directories_spoil_the_short_cut() -> None:
    """An option decides, whatever the kernel's default is."""
    for value, redirects in (("on", True), ("off", False), ("follow", True)):
        overlay = overlay_of([("overlay", "overlay", "", ("upperdir=/u", f"redirect_dir={value}"))])
        assert overlay is not None
        assert overlay.redirects is redirects


def test_mount_options() -> None:
    """Flags become flags, the rest is the file system's."""
    flags, data = flags_and_data(("ro", "nosuid", "rw", "size=1m", "noatime", "mode=755"))
    assert flags == MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NOATIME
    assert data == ["size=1m", "mode=755"]


@given(st.lists(st.sampled_from((b"", b".", b"..", b"a", b"b", b"..a", b"a."))).map(b"/".join))
def test_clean_names_stay_below_the_root(name: bytes) -> None:
    """No empty, `.` or `..` part is left, and cleaning again changes nothing."""
    cleaned = clean(name)
    assert not {b".", b".."} & set(cleaned.split(b"/"))
    assert cleaned == b"" or b"" not in cleaned.split(b"/")
    assert clean(cleaned) == cleaned


def test_whiteouts_name_an_entry() -> None:
    """And never the directory or its parent."""
    assert hidden_by(b".wh.a") == b"a"
    assert hidden_by(b".wh...a") == b"..a"
    for name in (b".wh.", b".wh..", b".wh..."):
        with pytest.raises(ArchiveError):
            hidden_by(name)


def test_limits() -> None:
    """A small blob may have the free bytes, a larger one its ratio, none more than the maximum."""
    limits = Limits(max_bytes=1000, max_ratio=10, free_bytes=100)
    assert [limits.budget(size) for size in (0, 5, 50, 5000)] == [100, 100, 500, 1000]


def test_requests_arrive_as_they_were_sent() -> None:
    """Both kinds."""
    mounts: list[messages.PlainMount] = [("bind", "/a", "", ("ro",))]
    apply = messages.ApplyRequest(mounts, "gzip", 10, 20, 1)
    compare = messages.CompareRequest(mounts, [], "none", -1)
    for request in (apply, compare):
        decoded = messages.decode_request(messages.encode_request(request))
        assert type(decoded) is type(request)
        assert vars(decoded) == vars(request)


def run_filter(program: bytes, arch: int, number: int, argument: int = 0) -> int:
    """Return what a filter says about a system call: the few instructions that it uses, interpreted."""
    data = struct.pack("=iIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    code: list[tuple[int, int, int, int]] = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == 0x06:
            return k
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == 0x15:
            at += yes if accumulator == k else no
        else:
            assert operation == 0x45
            at += yes if accumulator & k else no


@pytest.mark.parametrize(
    ("machine", "arch", "read", "clone", "forbidden"),
    [
        (
            "x86_64",
            0xC000003E,
            0,
            56,
            {"socket": 41, "execve": 59, "mount": 165, "ptrace": 101, "fork": 57, "x32 read": 0x40000000},
        ),
        ("aarch64", 0xC00000B7, 63, 220, {"socket": 198, "execve": 221, "mount": 40, "ptrace": 117}),
        ("riscv64", 0xC00000F3, 63, 220, {"socket": 198, "execve": 221, "mount": 40, "ptrace": 117}),
    ],
)
def test_the_filter(machine: str, arch: int, read: int, clone: int, forbidden: dict[str, int]) -> None:
    """Reads and threads are let through; sockets, programs, mounts, processes and other architectures are not."""
    program = cage.filter_program(machine)
    allow, refuse = 0x7FFF0000, 0x00050026
    assert run_filter(program, arch, read) == allow
    assert run_filter(program, arch, clone, 0x003D0F00) == allow
    assert run_filter(program, arch, clone, 17) == refuse
    assert {name: run_filter(program, arch, number) for name, number in forbidden.items()} == dict.fromkeys(
        forbidden, refuse
    )
    assert run_filter(program, 0x40000003, read) == refuse
