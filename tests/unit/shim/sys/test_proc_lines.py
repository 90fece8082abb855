"""Files in /proc whose names are any bytes."""

import os
from pathlib import Path

from pyctr_shim.oci.cgroups import manager
from pyctr_sys.cgroup_files import device_values
from pyctr_sys.cgroups import Hierarchy, read_hierarchies
from pyctr_sys.proc_lines import read_lines, unescaped

CGROUP = b"30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2  rw,nsdelegate\n"  # whose source is empty
NAMES = (b"\xfc", "\u00a0x".encode(), b"a\x0cb", b"\r", "\u2028".encode(), b"\x85", b"\x1c", b"with\\040blank")


def mountinfo(path: Path) -> list[str]:
    """Return the lines of a file with a mount by each name before one that is looked for."""
    others = [b"40 24 0:40 / /mnt/" + name + b" rw - tmpfs  rw\n" for name in NAMES]
    path.write_bytes(b"".join(others) + CGROUP)
    return read_lines(str(path))


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    lines = mountinfo(tmp_path / "mountinfo")

    assert [os.fsencode(line.split(" ")[4]) for line in lines[:-1]] == [b"/mnt/" + name for name in NAMES]
    assert unescaped(lines[-2].split(" ")[4]) == "/mnt/with blank"


def test_cgroups_are_found_whatever_else_is_mounted(tmp_path: Path) -> None:
    lines = mountinfo(tmp_path / "mountinfo")

    assert manager.detect(lines).unified == "/sys/fs/cgroup"
    assert read_hierarchies(lines, ["0::/own"]) == [Hierarchy(Path("/sys/fs/cgroup"), is_v2=True, own="/own")]


def test_a_file_without_lines(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("")

    assert read_lines(str(tmp_path / "cgroup")) == []


def test_devices_of_which_there_is_nothing(tmp_path: Path) -> None:
    """As kernels before 6.6 have it; and what is no number."""
    (tmp_path / "io.stat").write_text("8:0 254:16 254:0 rbytes=5 wios=2 cost.vrate=98.92\n7:0 rbytes=1\n")

    assert device_values(str(tmp_path / "io.stat")) == {"254:0": {"rbytes": 5, "wios": 2}, "7:0": {"rbytes": 1}}
