"""Spare shims: everything imported once, then one fork for each.

A spare shim has been forked before it is asked for and waits on the daemon's socket (fd 3, SOCK_SEQPACKET) by
itself: whoever reads a request becomes that shim, and the zygote only sees to it that spares are there. So a
request costs no hop and no fork.

    request  {"op": "shim", "namespace", "id", "bundle", "socket", "attach", "ttrpc_address", "grpc_address",
              "log_level", "instance"} and one descriptor: a stream socket that the shim serves first
    answer   {"instance", "pid"} or {"instance", "error"}

Each spare is forked twice, so that it is nobody's child. It has forked in its turn: that child, which is to be init
of the container, has copied the memory pages that making a container touches, which is most of what a fork costs.
The collector is off for good and what is imported is frozen: one collection in a shim would copy 4 MB of shared
pages. At the end of fd 3 the zygote and its spares end; shims do not.
"""

import array
import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, NoReturn

from pyctr_shim import journal, placement
from pyctr_shim.identity import Identity, Inheritance, make_inheritance
from pyctr_shim.keeper import Common, Keeper, share
from pyctr_shim.loop import Loop
from pyctr_shim.oci import forks, practice, runtime
from pyctr_shim.shim import BundleTaken, Shim, prepare_process, wake
from pyctr_shim.warmup import touched_pages, warm_up
from pyctr_sys import pagemap

_REQUEST_SIZE: Final = 64 << 10
_SPARES: Final = 2
_REFILL_AFTER: Final = 0.03  # seconds; by then a container that has just been asked for is running
_PAUSE_AFTER_DEATH: Final = 0.5
_MAY_KEEP: Final = 4


class Pages(NamedTuple):
    """The memory pages that a shim, and the init of its container, touch after the fork."""

    shim: pagemap.Ranges
    init: pagemap.Ranges


def serve(request_fd: int) -> None:
    """Keep spares until `request_fd`, which is owned from now on, ends."""
    requests = socket.socket(fileno=request_fd)
    requests.setblocking(True)
    requests.set_inheritable(False)
    placement.leave_the_daemon()
    placement.become_the_next_victim()
    inheritance = make_inheritance()
    forks.look_up_once()
    practice.plan_execs()
    warm_up(inheritance)
    gc.collect()
    gc.disable()
    gc.freeze()
    keep_spares(requests, inheritance, Pages(touched_pages(inheritance), practice.touched_pages()))


def keep_spares(requests: socket.socket, inheritance: Inheritance, pages: Pages) -> None:
    """Fork a new spare whenever one was taken or has died, until the daemon closes its end.

    While there is another, that waits a moment: forking, and the pages that the spare copies, would compete with the
    container that is being made.
    """
    poll = select.poll()
    poll.register(requests.fileno(), 0)  # only its end, which poll(2) reports unasked
    spares: dict[int, None] = {}
    while True:
        changes = poll.poll(_REFILL_AFTER * 1000) if 0 < len(spares) < _SPARES else []
        if not changes:
            while len(spares) < _SPARES:
                fd = fork_spare(requests, inheritance, pages, spares)
                spares[fd] = None
                poll.register(fd, select.POLLIN)
            changes = poll.poll()
        for fd, _events in changes:
            if fd == requests.fileno():
                return
            poll.unregister(fd)
            del spares[fd]
            if not os.read(fd, 1):  # it died before it was taken: do not fork as fast as they die
                time.sleep(_PAUSE_AFTER_DEATH)
            os.close(fd)


def fork_spare(requests: socket.socket, inheritance: Inheritance, pages: Pages, others: Iterable[int]) -> int:
    """Fork a spare and return a descriptor that tells its fate: a byte when it is taken, the end if it dies.

    `others` are the descriptors of the other spares, which this one shall not keep open.
    """
    told_fd, tell_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.fork() == 0:
                for fd in (told_fd, *others):
                    os.close(fd)
                be_keeper(requests, inheritance, pages, tell_fd)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(tell_fd)
    os.waitpid(pid, 0)
    return told_fd


def be_keeper(requests: socket.socket, inheritance: Inheritance, pages: Pages, tell_fd: int) -> NoReturn:
    """Keep a shim: its first worker is the spare, later ones go on with what it has become."""

    def begin(common: Common) -> NoReturn:
        be_spare(requests, inheritance, pages, tell_fd, common)

    def go_on(common: Common) -> NoReturn:
        pagemap.populate(pages.shim)
        wake(common).run()
        os._exit(0)

    prepare_process()
    forks.fork_siblings()
    Keeper(share(), inheritance.signal_fd).run(begin, go_on)


def be_spare(requests: socket.socket, inheritance: Inheritance, pages: Pages, tell_fd: int, common: Common) -> NoReturn:
    """Wait for a request, become that shim, and end with it."""
    with contextlib.suppress(OSError):  # then it is forked when it is asked for
        runtime.fork_ahead(pages.init)
    pagemap.populate(pages.shim)
    loop = Loop(common.epoll_fd)
    packet, connection = receive(requests)
    if not packet:
        os._exit(0)
    os.write(tell_fd, b"x")
    os.close(tell_fd)
    request = json.loads(packet)
    instance = request.get("instance", "")
    try:
        shim = Shim(loop, read_identity(request), inheritance.boot_id, common)
        shim.listen()
    except (BundleTaken, OSError, KeyError) as error:
        answer(requests, {"instance": instance, "error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    if connection is not None:
        shim.adopt(connection)
    answer(requests, {"instance": instance, "pid": common.keeper_pid})
    requests.close()
    shim.run()
    os._exit(0)


def receive(requests: socket.socket) -> tuple[bytes, socket.socket | None]:
    """Wait for a request and return it with its connection; nothing at the end of the socket."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(fds.itemsize * _MAY_KEEP)
    packet, ancillary, _flags, _address = requests.recvmsg(_REQUEST_SIZE, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for surplus in fds[1:]:
        os.close(surplus)
    return packet, socket.socket(fileno=fds[0]) if fds else None


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
