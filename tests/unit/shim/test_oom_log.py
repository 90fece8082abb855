"""Records of the kernel's log that tell of a kill for want of memory."""

import pytest

from pyctr_shim.oom_log import killed_in

GROUP = b"Memory cgroup out of memory: Killed process 4711 (tail) total-vm:17704kB, anon-rss:15872kB, UID:0"


@pytest.mark.parametrize(
    ("record", "pid"),
    [
        (b"3,1200,77000000,-;" + GROUP, 4711),
        (b"3,1201,77000001,-,caller=T12;Out of memory: Killed process 12 (x) total-vm:1kB", 12),
        (b"3,1202,77000002,-;Memory cgroup out of memory: Kill process 13 (x) score 1 or sacrifice child", 13),
        # Written by somebody: facility 1, user.
        (b"11,1203,77000003,-;" + GROUP, 0),
        (b"12,1203,77000003,-;" + GROUP, 0),
        (b"6,1204,77000004,-;something else", 0),
        (b"6,1205,77000005,-;a line\n SUBSYSTEM=" + GROUP, 0),
        (b";" + GROUP, 0),
        (b"", 0),
    ],
)
def test_who_was_killed(record: bytes, pid: int) -> None:
    assert killed_in(record) == pid
