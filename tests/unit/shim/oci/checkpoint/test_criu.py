"""CRIU's request protocol, with programs that stand for CRIU."""

import os
import sys
from pathlib import Path

import pytest

from pyctr_shim.oci.checkpoint import criu
from pyctr_shim.oci.errors import OciError
from pyctr_wire.criu import rpc_pb2 as pb

HEAD = f"""#!{sys.executable}
import socket, sys
sys.path[:0] = {sys.path!r}
from pyctr_wire.criu import rpc_pb2 as pb
end = socket.socket(fileno=int(sys.argv[2]))
def hear(): return pb.Request.FromString(end.recv(65536))
def say(**fields): end.send(pb.Response(**fields).SerializeToString())
"""


def program(tmp_path: Path, body: str) -> str:
    path = tmp_path / "criu"
    path.write_text(HEAD + body)
    path.chmod(0o755)
    return str(path)


def test_notifications_are_answered_until_the_answer_comes(tmp_path: Path) -> None:
    name = program(
        tmp_path,
        "hear(); say(type=pb.NOTIFY, notification=pb.Notification(script='one', pid=7))\n"
        "first = hear().notify_success\n"
        "say(type=pb.NOTIFY, notification=pb.Notification(script='two')); second = hear().notify_success\n"
        "say(type=pb.DUMP, success=first and not second)\n",
    )
    heard: list[tuple[str, int, int]] = []

    def notified(told: pb.Notification, fd: int) -> bool:
        heard.append((told.script, told.pid, fd))
        return told.script == "one"

    with criu.Criu(name) as process:
        assert process.ask(pb.Request(type=pb.DUMP), notified).success

    assert heard == [("one", 7, -1), ("two", 0, -1)]


def test_who_ends_without_an_answer_is_named(tmp_path: Path) -> None:
    name = program(tmp_path, "hear(); sys.exit(3)\n")

    with criu.Criu(name) as process, pytest.raises(OciError, match=r"without an answer \(exit status 3\)"):
        process.ask(pb.Request(type=pb.DUMP))


def test_what_is_no_message_is_no_answer(tmp_path: Path) -> None:
    name = program(tmp_path, "hear(); end.send(b'\\xff' * 10)\n")

    with criu.Criu(name) as process, pytest.raises(OciError, match="without an answer"):
        process.ask(pb.Request(type=pb.DUMP))


def test_one_that_is_too_old_is_refused(tmp_path: Path) -> None:
    name = program(tmp_path, "hear(); say(type=pb.VERSION, success=True, version=pb.Version(major=3, minor=16))\n")

    with pytest.raises(OciError, match=r"3\.16 is too old to restore with: needs 3\.17"):
        criu.require_new_enough(name)


def test_what_fails_before_it_is_executed_is_the_answer(tmp_path: Path) -> None:
    def become() -> None:
        raise FileNotFoundError(2, "no such thing", "/cgroup")

    with criu.Criu(program(tmp_path, ""), (), become) as process:
        response = process.ask(pb.Request(type=pb.DUMP))

    assert not response.success
    assert "no such thing (/cgroup)" in response.error


def test_one_that_hangs_is_ended_with_its_object(tmp_path: Path) -> None:
    name = program(
        tmp_path,
        f"import os; open('{tmp_path}/pid', 'w').write(str(os.getpid()))\n"
        "say(type=pb.NOTIFY); hear(); hear(); hear()\n",
    )

    def notified(_told: pb.Notification, _fd: int) -> bool:
        raise OciError("enough")

    with pytest.raises(OciError, match="enough"), criu.Criu(name) as process:
        process.ask(pb.Request(type=pb.DUMP), notified)

    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text()}")


def test_errors_are_quoted_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(00.1) all is well\n(00.2) Error (a.c:1): first\n(00.3) Warn (a.c:2): x\n(00.4) Error (b.c:2): last\n"
    )

    error = criu.failure("save it", pb.Response(error="misleading"), log, "/kept")

    assert str(error) == "criu failed to save it: (a.c:1): first; (b.c:2): last (its log: /kept)"


def test_without_a_log_criu_has_the_word(tmp_path: Path) -> None:
    error = criu.failure("save it", pb.Response(error="no\nmemory"), tmp_path / "absent", "")

    assert str(error) == "criu failed to save it: no memory"
