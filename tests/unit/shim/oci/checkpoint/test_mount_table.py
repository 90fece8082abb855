"""The mount table of a process, and which mounts of a container are not its own."""

from pyctr_shim.oci.checkpoint import dump, mount_table

TABLE = """\
1 0 0:30 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a
2 1 0:31 / /proc rw,nosuid - proc proc rw
3 2 0:31 /sys /proc/sys ro,nosuid - proc proc rw
4 1 0:32 / /dev rw - tmpfs tmpfs rw
5 4 0:32 /null /proc/keys rw - tmpfs tmpfs rw
6 1 8:1 /data/a\\040b /with\\040space ro,relatime - ext4 /dev/sda1 rw
7 6 0:40 / /with\\040space/below rw - tmpfs tmpfs rw
8 1 0:50 / /run/secrets rw - tmpfs tmpfs rw
9 1 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup rw
"""


def parsed() -> list[mount_table.Mounted]:
    return mount_table.parse(TABLE.splitlines(keepends=True))


def test_a_line_is_taken_apart() -> None:
    item = parsed()[5]

    assert item == mount_table.Mounted(6, "8:1", "/data/a b", "/with space", frozenset({"ro", "relatime"}), "ext4")


def test_a_slave_sees_what_others_mount_and_nobody_sees_what_it_has() -> None:
    options = ("", " shared:1", " master:2 propagate_from:3", " shared:1 master:2")
    lines = [f"1 0 0:30 / / rw{option} - tmpfs tmpfs rw" for option in options]

    assert [item.is_slave for item in mount_table.parse(lines)] == [False, False, True, False]


def test_what_the_spec_binds_and_what_cannot_be_made_anew_is_external() -> None:
    spec = {"mounts": [{"destination": "/run/secrets/", "type": "bind"}, {"destination": "/proc", "type": "proc"}]}

    found = dump.external_mounts(parsed(), spec, of_the_host={"0:40"})

    assert [item.where for item in found] == ["/with space", "/with space/below", "/run/secrets", "/sys/fs/cgroup"]


def test_below_is_a_matter_of_whole_names() -> None:
    assert mount_table.is_below("/a/b", "/a")
    assert mount_table.is_below("/a", "/a")
    assert mount_table.is_below("/a", "/")
    assert not mount_table.is_below("/ab", "/a")
