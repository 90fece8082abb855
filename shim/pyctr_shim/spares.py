"""Spare shims: everything imported once, then one fork for each.

A spare shim has been forked before it is asked for and waits on the daemon's socket (fd 3, SOCK_SEQPACKET) by
itself: whoever reads a request becomes that shim, and the zygote only sees to it that spares are there. So a
request costs no hop and no fork.

    request  {"op": "shim", "namespace", "id", "bundle", "socket", "attach", "ttrpc_address", "grpc_address",
              "log_level", "instance"} and one descriptor: a stream socket that the shim serves first
    answer   {"instance", "pid"} or {"instance", "error"}

A spare has copied the memory pages that making a container touches, which is most of what a fork costs.

A shim that was told to shut down, and has nothing left of its container, is a spare again: it offers itself to the
zygote with a packet that carries the reading end of a new pipe. What it writes there, or its end, tells its fate;
and the zygote closes that end to let one go that is too many.

The collector is off, save between two lives, and what is imported is frozen: one collection of that in a shim would
copy 4 MB of shared pages. At the end of fd 3 the zygote and its spares end; shims do not.
"""

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Set
from typing import Any, Final, NamedTuple, NoReturn

from pyctr_shim import descriptors, journal, placement
from pyctr_shim.identity import Identity, Inheritance, make_inheritance
from pyctr_shim.keeper import Common, Keeper, read_notices, share
from pyctr_shim.loop import Loop
from pyctr_shim.oci import exec as joining
from pyctr_shim.oci import forks
from pyctr_shim.shim import BundleTaken, Shim, prepare_process, wake
from pyctr_shim.warmup import touched_pages, warm_up
from pyctr_sys import pagemap
from pyctr_sys.immortal import immortalize
from pyctr_wire import cgroup_metrics as _cgroup_metrics  # noqa: F401 - so that all shims share it

_REQUEST_SIZE: Final = 64 << 10
_SPARES: Final = 2
_MOST_SPARES: Final = 24  # while shims come back as fast as they are taken, as those of sixteen at once do
_SURPLUS_AFTER: Final = 2.0  # seconds without a change
_REFILL_AFTER: Final = 0.03  # seconds; by then a container that has just been asked for is running
_PAUSE_AFTER_DEATH: Final = 0.5
_MAY_KEEP: Final = 4
_LIVES: Final = 100  # of one worker, at least: what Python never gives back must not add up


class Nest(NamedTuple):
    """What a spare has of the zygote: where requests come, where it offers itself, and what was made once.

    `pages` are those that a shim touches until its container runs.
    """

    requests: socket.socket
    offers: socket.socket
    inheritance: Inheritance
    pages: pagemap.Ranges


def serve(request_fd: int) -> None:
    """Keep spares until `request_fd`, which is owned from now on, ends."""
    requests = socket.socket(fileno=request_fd)
    requests.setblocking(True)
    requests.set_inheritable(False)
    placement.leave_the_daemon()
    placement.become_the_next_victim()
    inheritance = make_inheritance()
    forks.look_up_once()
    warm_up(inheritance)
    offered, offers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    offers.setblocking(False)
    gc.collect()
    gc.disable()
    immortalize()
    gc.freeze()
    pages = touched_pages(inheritance)
    keep_spares(Nest(requests, offers, inheritance, pages), offered)


# -- the zygote


def keep_spares(nest: Nest, offered: socket.socket) -> None:
    """Fork a new spare whenever one was taken or has died, until the daemon closes its end.

    While there is another, that waits a moment: forking, and the pages that the spare copies, would compete with the
    container that is being made.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for shims
    poll = select.poll()
    poll.register(nest.requests.fileno(), 0)  # only its end, which poll(2) reports unasked
    poll.register(offered.fileno(), select.POLLIN)
    spares: dict[int, None] = {}  # descriptors that tell of one's fate, the oldest first

    def keep(fd: int) -> None:
        spares[fd] = None
        poll.register(fd, select.POLLIN)

    def forget(fd: int) -> None:
        poll.unregister(fd)
        del spares[fd]
        os.close(fd)

    while True:
        changes = poll.poll(_patience(len(spares)))
        while not changes and len(spares) > _SPARES:
            forget(next(iter(spares)))
        while not changes and len(spares) < _SPARES:
            keep(fork_spare(nest, (offered.fileno(), *spares)))
        died = False
        for fd, _events in changes:
            if fd == nest.requests.fileno():
                return
            if fd == offered.fileno():
                for spare in receive(offered)[1]:
                    keep(spare)
                    if len(spares) > _MOST_SPARES:
                        forget(spare)
            else:
                died = not os.read(fd, 1) or died  # before it was taken
                forget(fd)
        if died:  # do not fork as fast as they die
            time.sleep(_PAUSE_AFTER_DEATH)


def _patience(spares: int) -> float | None:
    """Return for how many milliseconds so many spares are right."""
    if spares < _SPARES:
        return _REFILL_AFTER * 1000 if spares else 0
    return _SURPLUS_AFTER * 1000 if spares > _SPARES else None


def fork_spare(nest: Nest, others: Iterable[int]) -> int:
    """Fork a spare and return a descriptor that tells its fate: a byte when it is taken, the end if it dies.

    The descriptors `others` are not for it.
    """
    told_fd, tell_fd = os.pipe()
    if os.fork() == 0:
        try:
            for fd in (told_fd, *others):
                os.close(fd)
            be_keeper(nest, tell_fd)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    os.close(tell_fd)
    return told_fd


# -- a spare's keeper, and then its worker


def be_keeper(nest: Nest, tell_fd: int) -> NoReturn:
    """Keep a shim: its first worker is the spare, later ones go on with what it has become."""

    def begin(common: Common) -> NoReturn:
        forks.fork_siblings()
        pagemap.populate(nest.pages)
        forks.start_ahead()
        live(nest, common, kept, tell_fd)

    def go_on(common: Common) -> NoReturn:
        forks.fork_siblings()
        pagemap.populate(nest.pages)
        live_out(wake(common), common)
        live(nest, common, kept, begin_anew(nest, common, kept))

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    prepare_process()
    common = share()
    kept = descriptors.opened() - {tell_fd}
    Keeper(common, nest.inheritance.signal_fd).run(begin, go_on)


def live(nest: Nest, common: Common, kept: Set[int], tell_fd: int) -> NoReturn:
    """Be a spare, then a shim, then a spare again, as long as this process is of use."""
    for _ in range(lives()):
        live_out(be_taken(nest, common, tell_fd), common)
        tell_fd = begin_anew(nest, common, kept)
    live_out(be_taken(nest, common, tell_fd), common)
    os._exit(0)  # without having been offered: nobody counts on it


def lives() -> int:
    """Return how often this process may be a spare again: those that take turns must not all end at once."""
    return _LIVES + os.getpid() % _LIVES


def be_taken(nest: Nest, common: Common, tell_fd: int) -> Shim:
    """Wait for a request and return the shim that is asked for; ends the process if there will be none."""
    packet, fds = wait_for_request(nest.requests, tell_fd)
    if not packet:
        os._exit(0)
    with contextlib.suppress(BrokenPipeError):
        os.write(tell_fd, b"x")
    os.close(tell_fd)
    request = json.loads(packet)
    instance = request.get("instance", "")
    try:
        shim = Shim(Loop(os.dup(common.epoll_fd)), read_identity(request), nest.inheritance.boot_id, common)
        shim.listen()
    except (BundleTaken, OSError, KeyError) as error:
        answer(nest.requests, {"instance": instance, "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    for fd in fds:
        shim.adopt(socket.socket(fileno=fd))
    answer(nest.requests, {"instance": instance, "pid": common.keeper_pid})
    return shim


def live_out(shim: Shim, common: Common) -> None:
    """Be a shim to its end; ends the process if that leaves anything behind."""
    shim.run()
    forks.dismiss()
    if not shim.spotless or has_other_children(common):
        os._exit(0)


def begin_anew(nest: Nest, common: Common, kept: Set[int]) -> int:
    """Forget what this process was, save the descriptors `kept`, and offer it; return what tells the zygote its fate.

    Ends the process if there is no zygote any more. Nothing of the last life is told to the next: the keeper, which
    has no other child, has told of all their ends.
    """
    journal.close_log()
    joining.forget()
    gc.collect()  # objects close what they own; then there is nobody left to close it a second time
    descriptors.close_all_but(kept)
    os.ftruncate(common.memory_fd, 0)
    with select.epoll() as epoll:
        os.dup2(epoll.fileno(), common.epoll_fd, inheritable=False)
    for _ in read_notices(common):
        continue
    forks.start_ahead()
    told_fd, tell_fd = os.pipe()
    try:
        socket.send_fds(nest.offers, [b"x"], [told_fd])
    except OSError:
        os._exit(0)
    os.close(told_fd)
    return tell_fd


def has_other_children(common: Common) -> bool:
    """Whether the keeper has a child beside its worker: an orphan of a container in the host's PID namespace, say."""
    try:
        with open(f"/proc/{common.keeper_pid}/task/{common.keeper_pid}/children") as children:
            return children.read().split() != [str(os.getpid())]
    except OSError:
        return True  # a kernel that does not tell


def wait_for_request(requests: socket.socket, tell_fd: int) -> tuple[bytes, list[int]]:
    """Return a request and its descriptors; nothing once the daemon's end is closed, or the zygote's of `tell_fd`."""
    with select.epoll() as epoll:
        # Of several spares, one is woken. Source: epoll_ctl(2).
        epoll.register(requests.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.register(tell_fd, 0)
        while True:
            # A request first, whatever else there is: no other spare may have been woken for it.
            found = {fd for fd, _events in epoll.poll()}
            with contextlib.suppress(BlockingIOError):
                return receive(requests)
            if tell_fd in found:
                return b"", []


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Return a packet and its descriptors; nothing at the end of the connection. Raises BlockingIOError."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(fds.itemsize * _MAY_KEEP)
    flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    packet, ancillary, _flags, _address = connection.recvmsg(_REQUEST_SIZE, space, flags)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds)


def answer(requests: socket.socket, reply: dict[str, Any]) -> None:
    """Tell the daemon; one that is gone meanwhile finds the shim by its bundle."""
    try:
        requests.send(json.dumps(reply).encode(), socket.MSG_NOSIGNAL)
    except OSError as error:
        journal.log("answer not sent", error=str(error))


def read_identity(request: dict[str, Any]) -> Identity:
    """Return who a request asks for; raises KeyError for a missing field."""
    return Identity(
        namespace=request["namespace"],
        id=request["id"],
        bundle=request["bundle"],
        socket=request["socket"],
        attach=request["attach"],
        ttrpc_address=request["ttrpc_address"],
        grpc_address=request["grpc_address"],
        instance=request["instance"],
        log_level=request["log_level"],
    )
