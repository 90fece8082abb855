"""What a keeper forwards: every child's end, whatever else ends at the same moment and however full the pipe is."""

import subprocess
import sys
import textwrap

_PRELUDE = """
import fcntl, os, signal
from pyctr_shim.keeper import Keeper, Notice, read_notices, share
from pyctr_sys.signalfd import take_over_signals

signal_fd = take_over_signals()
common = share()
keeper = Keeper(common, signal_fd)

def child(code):
    pid = os.fork()
    if pid == 0:
        os._exit(code)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
"""


def run(program: str) -> None:
    """Run a program in a process of its own: the keeper reaps every child that there is."""
    subprocess.run([sys.executable, "-c", _PRELUDE + textwrap.dedent(program)], check=True)


def test_a_worker_that_falls_asleep_while_others_end() -> None:
    run("""
        first, worker, last = child(3), child(75), child(4)
        assert os.waitstatus_to_exitcode(keeper.forward(worker)) == 75
        told = [(notice.pid, os.waitstatus_to_exitcode(notice.status)) for notice in read_notices(common)]
        assert sorted(told) == sorted([(first, 3), (last, 4)])
        assert keeper.forward() is None
    """)


def test_what_a_full_pipe_does_not_take_is_told_later() -> None:
    run("""
        fcntl.fcntl(common.notify_fd, fcntl.F_SETPIPE_SZ, 4096)
        pids = {child(0) for _ in range(300)}
        told = []
        while len(told) < len(pids):
            keeper.forward()
            notices = list(read_notices(common))
            assert notices
            told += [notice.pid for notice in notices]
        assert set(told) == pids
    """)


def test_a_request_to_open_logs_anew() -> None:
    run("""
        os.kill(os.getpid(), signal.SIGUSR1)
        keeper.forward()
        assert list(read_notices(common)) == [Notice(0)]
    """)
