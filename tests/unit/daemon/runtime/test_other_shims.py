"""What shims of other makes print, and which form of parameters they read."""

from pathlib import Path

import pytest

from pyctr_wire.containerd.runtime.bootstrap.v1.bootstrap_pb2 import BootstrapResult
from pyctr_wire.errors import Unimplemented, UnknownError
from pyctrd.runtime.bundle import Bundles, Manifest, OtherShim
from pyctrd.runtime.other_shims import parse_answer, reads_parameters

ADDRESS = "unix:///run/containerd/s/0123"


@pytest.mark.parametrize(
    ("output", "version"),
    [
        (f"{ADDRESS}\n".encode(), 2),
        (b'{"version":2,"address":"unix:///run/containerd/s/0123","protocol":"ttrpc"}', 2),
        (b'{"version":3,"address":"unix:///run/containerd/s/0123","protocol":"ttrpc"}\n', 3),
        (BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc").SerializeToString(), 3),
    ],
    ids=["1.6", "2.0, version 2", "2.0", "2.3"],
)
def test_each_release_s_answer_is_understood(output: bytes, version: int) -> None:
    shim = parse_answer("shim", output)

    assert shim == OtherShim(version, ADDRESS)
    assert shim.path == "/run/containerd/s/0123"


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (b"", Unimplemented, r"unsupported shim version \(0\)"),
        (b"\xff\xff", UnknownError, "tells no address"),
        (b'{"version":3}', UnknownError, "tells no address"),
        (b'{"version":[],"address":"","protocol":""}', UnknownError, "tells no address"),
        (b'{"version":4,"address":"unix:///s","protocol":"ttrpc"}', Unimplemented, r"unsupported shim version \(4\)"),
        (b'{"version":3,"address":"unix:///s","protocol":"grpc"}', Unimplemented, "only ttrpc"),
        (b'{"version":3,"address":"vsock://3:1024","protocol":"ttrpc"}', Unimplemented, "only ttrpc at unix:///PATH"),
    ],
)
def test_what_is_no_answer_is_refused(output: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        parse_answer("shim", output)


@pytest.mark.parametrize(
    ("printed", "typed"),
    [
        ("  Version:  v2.3.4", True),
        ("  Version:  2.3.4+unknown", True),
        ("  Version:  3.0.0", True),
        ("  Version:  v2.2.1", False),
        ("  Version:  1.6.20~ds1", False),
        ("kata containers shim", False),
    ],
)
def test_the_version_tells_which_parameters_a_program_reads(tmp_path: Path, printed: str, typed: bool) -> None:
    program = tmp_path / "shim"
    program.write_text(f"#!/bin/sh\n[ $1 = -v ] && echo '{printed}'\n")
    program.chmod(0o755)

    assert reads_parameters(str(program)) is typed
    assert not reads_parameters(f"{program}-missing")


def test_what_is_known_of_a_shim_outlives_the_daemon(tmp_path: Path) -> None:
    """And a bundle with a shim of ours stays one that an older daemon reads."""
    bundle = Bundles(tmp_path).create(Manifest("ns", "c1", "kata", "abc", 1, shim="/bin/shim"), b"{}")
    Bundles(tmp_path).create(Manifest("ns", "c2", "r", "abc", 1), b"{}")
    bundle.write_other_shim(OtherShim(3, ADDRESS, pid=7, start_ticks=8))
    bundle.note_init(9)

    found = {bundle.manifest.id: bundle for bundle in Bundles(tmp_path).list()[0]}

    assert found["c1"].manifest.shim == "/bin/shim"
    assert found["c1"].other_shim() == OtherShim(3, ADDRESS, pid=7, start_ticks=8, init=9)
    assert found["c1"].recorded_pid() == 9
    assert '"shim"' not in (found["c2"].path / "task.json").read_text()
    bundle.forget_other_shim()
    assert bundle.other_shim() is None
    assert bundle.recorded_pid() == 0
