"""What the kernel's log says of kills for want of memory: for cgroups that are gone before their count was read.

systemd removes the cgroup of a scope together with its last process, and may be faster than whoever is told of the kill
by that cgroup. Records are `PREFIX;TEXT`, of which the first number in PREFIX is 8 * facility + level; the kernel's own
facility is 0, and nobody else's can be. Source: Linux Documentation/ABI/testing/dev-kmsg, mm/oom_kill.c.
"""

import os
import re
from typing import Final

_LOG: Final = "/dev/kmsg"
_RECORD_BYTES: Final = 8192
_LEVELS: Final = 8
_KILLED: Final = re.compile(rb"(?:O|o)ut of memory: Kill(?:ed)? process (\d+) ")


def tells_of(pid: int) -> bool:
    """Whether the kernel has noted that it killed this process for memory; False if its log is not for us.

    It keeps some thousand records.
    """
    try:
        log_fd = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            try:
                if killed_in(os.read(log_fd, _RECORD_BYTES)) == pid:
                    return True
            except BlockingIOError:
                return False
            except BrokenPipeError:
                continue  # records were overwritten meanwhile: the next read goes on behind them
    finally:
        os.close(log_fd)


def killed_in(record: bytes) -> int:
    """Return the pid of the process that was killed, 0 if the record is about something else or not the kernel's."""
    prefix, _, text = record.partition(b";")
    priority = prefix.partition(b",")[0]
    found = _KILLED.search(text.partition(b"\n")[0])
    if found is None or not priority.isdigit() or int(priority) >= _LEVELS:
        return 0
    return int(found[1])
