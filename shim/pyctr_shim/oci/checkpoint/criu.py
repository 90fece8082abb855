"""CRIU, asked by its RPC: `criu swrk FD` serves one request on a socket that it inherits, and ends.

The RPC rather than the command line, because only it hands over a terminal's master side, takes fds by number for
what is not to be found by name, and stops at points where we look at what it has made before that runs. A
message is a packet; between request and response there are notifications, each of which waits for an answer. Source:
CRIU's wiki, "RPC"; criu(8).
"""

import array
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Self

from google.protobuf.message import DecodeError

from pyctr_shim.oci.checkpoint.choices import CGROUP_MODES, Common
from pyctr_shim.oci.errors import OciError, describe
from pyctr_shim.oci.namespaces import KINDS
from pyctr_shim.oci.program import reset_signals
from pyctr_sys.namespaces import clone3
from pyctr_sys.pidfd import pidfd_send_signal, readable, wait
from pyctr_wire.criu import rpc_pb2 as pb

_LOG_LEVEL: Final = 4  # all that it has to say: a checkpoint that fails is found out about by its log
_OLDEST: Final = (3, 17)  # the first that restores mounts into an empty mount namespace

_LARGEST: Final = 1 << 16
_FD_SPACE: Final = socket.CMSG_SPACE(4)
_LOG_TAIL: Final = 4096
_ERRORS_QUOTED: Final = 5
_END_SECONDS: Final = 10.0

Notified = Callable[[pb.Notification, int], bool]
"""Takes a notification and an fd, -1 if none came with it; returns whether CRIU is to go on, where that is asked."""


def require_new_enough(program: str) -> None:
    """Raise OciError if there is no CRIU, or one that is too old to restore with."""
    with Criu(program) as criu:
        found = criu.ask(pb.Request(type=pb.VERSION)).version
    if (found.major, found.minor) < _OLDEST:
        wanted = ".".join(map(str, _OLDEST))
        raise OciError(f"{program} {found.major}.{found.minor} is too old to restore with: needs {wanted} or newer")


class Criu:
    """One process of CRIU's; a context manager that ends it."""

    def __init__(self, program: str, fds: Sequence[int] = (), become: Callable[[], None] | None = None) -> None:
        """Start it; it inherits `fds` (borrowed) under their numbers. Raises OciError if it is not installed.

        `become` is done by its process before it executes CRIU; an OSError there is the answer to what is asked.
        """
        path = shutil.which(program)
        if path is None:
            raise OciError(f"{program}: not found: install criu (Debian: apt-get install criu)")
        self._ended = "not waited for"
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Not by subprocess: with something to do in the child, that runs what modules want done after a fork.
            pid, self._pidfd = clone3(0, signal.SIGCHLD)
            if pid == 0:
                _execute(path, theirs, fds, become)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it: by itself once it has answered, else by force."""
        self._socket.close()
        if self._pidfd < 0:
            return
        if kind or not readable(self._pidfd, _END_SECONDS):
            with suppress(ProcessLookupError):
                pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._reap()

    def ask(self, request: pb.Request, notified: Notified | None = None) -> pb.Response:
        """Return the answer to a request, good or bad. Raises OciError if CRIU ends without one.

        `notified` may raise, which is passed on: a CRIU without an answer is killed when this object is left.
        """
        self._socket.send(request.SerializeToString())
        while True:
            response, fd = self._receive()
            if response.type != pb.NOTIFY:
                return response
            goes_on = notified is None or notified(response.notification, fd)
            self._socket.send(pb.Request(type=pb.NOTIFY, notify_success=goes_on).SerializeToString())

    def _receive(self) -> tuple[pb.Response, int]:
        fds = array.array("i")
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(_LARGEST, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.frombytes(data)
            if packet:
                return pb.Response.FromString(packet), fds[0] if fds else -1
        except (ConnectionResetError, DecodeError):
            pass
        raise OciError(f"criu ended without an answer ({self._reap()})")

    def _reap(self) -> str:
        """Wait for the end, which may be asked for twice, and say how it was."""
        if self._pidfd >= 0:
            result = wait(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            if result is not None:
                kind = "exit status" if result.si_code == os.CLD_EXITED else "signal"
                self._ended = f"{kind} {result.si_status}"
        return self._ended


def _execute(path: str, end: socket.socket, fds: Sequence[int], become: Callable[[], None] | None) -> NoReturn:
    """In the child: execute CRIU, or answer in its place why that cannot be."""
    try:
        if become is not None:
            become()
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null_fd, number)
        for fd in (end.fileno(), *fds):
            os.set_inheritable(fd, True)
        os.chdir("/")
        reset_signals()
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        os.execve(path, [path, "swrk", str(end.fileno())], environment)  # noqa: S606 - no shell is wanted
    except (OSError, OciError) as error:
        text = describe(error) if isinstance(error, OSError) else str(error)
        end.recv(_LARGEST)  # an end that is closed with something unread costs the other one what it has been sent
        end.send(pb.Response(error=f"before it is executed: {text}").SerializeToString())
    finally:
        os._exit(127)


def options_for(common: Common) -> pb.Options:
    """Return CRIU's options for what is chosen. Raises OciError for a name that is none."""
    common.check()
    options = pb.Options(
        log_level=_LOG_LEVEL,
        notify=True,
        tcp_established=common.tcp_established,
        external_unix_sockets=common.external_unix_sockets,
        shell_job=common.shell_job,
        file_locks=common.file_locks,
        auto_dedup=common.auto_dedup,
        lazy_pages=common.lazy_pages,
        orphan_pts_master=True,
        manage_cgroups=True,
        cgroup_mode=pb.CgroupMode.Name(CGROUP_MODES[common.cgroup_mode]),
    )
    for name in common.empty_namespaces:
        options.empty_namespaces |= KINDS[name]
    return options


def failure(stage: str, response: pb.Response, log: Path, kept: str) -> OciError:
    """Return the error of a request that CRIU could not fulfil, with its own last errors quoted from its log.

    `kept` is the path at which the log stays, "" if it does not.
    """
    errors = [line.partition("Error ")[2] for line in _tail(log) if "Error " in line]
    reason = "; ".join(errors[-_ERRORS_QUOTED:]) or " ".join(response.error.split())
    if not reason:
        reason = os.strerror(response.errno) if response.errno else "it gives no reason"
    where = f" (its log: {kept})" if kept else ""
    return OciError(f"criu failed to {stage}: {reason}{where}", response.errno)


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_TAIL))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
