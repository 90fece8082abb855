"""Files of an image without a mount: layers, whiteouts, symlinks, and nothing outside."""

import os
import stat
from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctrd.core.mounts import Mount
from pyctrd.runtime.layer_view import LayerView, directories

LIMIT = 1000


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Three layers, the uppermost first."""
    found = [tmp_path / name for name in ("upper", "middle", "lower")]
    for layer in found:
        (layer / "etc").mkdir(parents=True)
        layer.chmod(0o755)
    return found


def read(layers: list[Path], path: str) -> bytes | None:
    with LayerView(map(str, layers)) as view:
        return view.read_file(path, LIMIT)


def whiteout(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        pytest.skip("this kernel lets only root make whiteouts")


def test_the_uppermost_file_counts(layers: list[Path]) -> None:
    _, middle, lower = layers
    (lower / "etc/passwd").write_text("lower")
    assert read(layers, "/etc/passwd") == b"lower"
    (middle / "etc/passwd").write_text("middle")
    assert read(layers, "etc//./passwd") == b"middle"
    assert read(layers, "/etc/../etc/../../etc/passwd") == b"middle"
    assert read(layers, "/etc/group") is None
    assert read(layers, "/nowhere/passwd") is None


def test_whiteouts_hide_what_is_below(layers: list[Path]) -> None:
    upper, middle, lower = layers
    (lower / "etc/passwd").write_text("lower")
    whiteout(middle / "etc/passwd")
    assert read(layers, "/etc/passwd") is None
    (upper / "etc/passwd").write_text("upper")
    assert read(layers, "/etc/passwd") == b"upper"


def test_a_whiteout_hides_a_whole_directory(layers: list[Path]) -> None:
    upper, middle, lower = layers
    (lower / "etc/passwd").write_text("lower")
    (middle / "etc").rmdir()
    (upper / "etc").rmdir()
    whiteout(middle / "etc")
    assert read(layers, "/etc/passwd") is None
    (upper / "etc").mkdir()
    assert read(layers, "/etc/passwd") is None


def test_opaque_directories_hide_what_is_below(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("lower")
    try:
        os.setxattr(layers[1] / "etc", "trusted.overlay.opaque", b"y")
    except OSError:
        pytest.skip("trusted xattrs cannot be set here")
    assert read(layers, "/etc/passwd") is None


def test_a_file_over_a_directory_hides_it(layers: list[Path]) -> None:
    upper, middle, lower = layers
    (lower / "etc/passwd").write_text("lower")
    (upper / "etc").rmdir()
    (middle / "etc").rmdir()
    (middle / "etc").write_text("a file")
    assert read(layers, "/etc") == b"a file"
    assert read(layers, "/etc/passwd") is None


def test_cve_2024_9676_symlinks_lead_across_layers_and_never_out(layers: list[Path], tmp_path: Path) -> None:
    upper, middle, lower = layers
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    (lower / "usr").mkdir()
    (lower / "usr/passwd").write_text("real")
    (upper / "etc/passwd").symlink_to("../usr/passwd")
    assert read(layers, "/etc/passwd") == b"real"
    (upper / "etc/absolute").symlink_to("/usr/passwd")
    assert read(layers, "/etc/absolute") == b"real"
    (upper / "etc/escape").symlink_to(f"../../../../../..{secret}")
    assert read(layers, "/etc/escape") is None
    (upper / "etc/host").symlink_to(secret)
    assert read(layers, "/etc/host") is None
    (middle / "sbin").symlink_to("usr")
    assert read(layers, "/sbin/passwd") == b"real"
    (upper / "etc/loop").symlink_to("loop")
    with pytest.raises(FailedPrecondition, match="symlinks"):
        read(layers, "/etc/loop")


def test_cve_2026_47262_only_small_regular_files_are_read(layers: list[Path]) -> None:
    """Nobody waits for a FIFO or reads a large /etc/group to its end; also CVE-2025-4437 and CVE-2024-9676."""
    (layers[0] / "etc/big").write_bytes(b"x" * (LIMIT + 1))
    with (layers[0] / "etc/huge").open("wb") as file:
        file.truncate(2 << 30)
    os.mkfifo(layers[0] / "etc/fifo")
    for name in ("big", "huge", "fifo", "."):
        with pytest.raises(FailedPrecondition):
            read(layers, f"/etc/{name}")
    assert read(layers, "/etc/big/more") is None


def test_no_descriptor_is_left(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_text("lower")
    (layers[0] / "etc/link").symlink_to("passwd")
    before = os.listdir("/proc/self/fd")
    for path in ("/etc/passwd", "/etc/link", "/etc/none", "/none/x"):
        read(layers, path)
    assert os.listdir("/proc/self/fd") == before


def test_directories_of_mounts() -> None:
    bind = Mount("bind", "/s/1/fs", options=("rw", "rbind"))
    overlay = Mount(
        "overlay", "overlay", options=("index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")
    )
    assert directories([bind]) == ["/s/1/fs"]
    assert directories([overlay]) == ["/s/3/fs", "/s/2/fs", "/s/1/fs"]
    with pytest.raises(FailedPrecondition):
        directories([Mount("erofs", "/x")])
