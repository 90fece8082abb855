"""What `pyctr-oci` may be told: runc's commands and options, with runc's exit status for those who err."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from pyctr_shim.oci import checkpoint_commands, commands, process_commands, reports

_ROOT: Final = "/run/pyctr/oci"
_TTY_HELP: Final = "send the terminal's master side to this unix socket"
_ROOTLESS_HELP: Final = "false: do not enter the container's user namespace first, which who is not root needs"
_EXEC_FAILED: Final = 255  # what runc's callers tell from the program's own status

_SIZE_UNITS: Final = "bkmgtp"
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class UsageError(Exception):
    """The words of the command line are none that this command takes."""


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options, among them `command`, the function to call. Raises UsageError."""
    return _parser().parse_args(words)


def log_of(words: Sequence[str]) -> argparse.Namespace:
    """Return where to log to, from words that are wrong otherwise."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    _add_log(parser)
    try:
        return parser.parse_known_args(words)[0]
    except UsageError:
        return argparse.Namespace(log=None, log_format="text")


class _Parser(argparse.ArgumentParser):
    """One that leaves it to its caller to tell of errors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """Print the version and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(reports.version_text() + "\n")
        parser.exit()


def _default_root() -> str:
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR", "")
    return f"{runtime_directory}/pyctr/oci" if os.geteuid() and runtime_directory else _ROOT


def _size(text: str) -> int:
    """Return bytes of `512m` and the like, as runc's `--memory` takes them."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size")
    return int(float(match[1]) * 1024 ** _SIZE_UNITS.index(match[2] or "b"))


def _duration(text: str) -> float:
    """Return seconds of `5s` and the like."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|)", text)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration")
    return float(match[1]) * _SECONDS[match[2]]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pyctr-oci", description="An OCI runtime.", allow_abbrev=False)
    parser.add_argument("--version", "-v", action=_Version, nargs=0)
    parser.add_argument("--debug", action="store_true", help="accepted; there is no debug log")
    _add_log(parser)
    parser.add_argument("--root", default=_default_root(), help="where the containers' states are kept")
    parser.add_argument("--systemd-cgroup", action="store_true", help="have systemd make the cgroup")
    parser.add_argument("--rootless", choices=("true", "false", "auto"), default="auto", help=_ROOTLESS_HELP)
    parser.add_argument("--criu", metavar="PATH", default="criu", help="the program that saves and restores")
    parser.set_defaults(entered=False)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = subparsers.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        sub.set_defaults(command=command, failure=1)
        return sub

    _add_creation(add)
    _add_exec(add("exec", process_commands.exec_, "execute a process in a container"))
    _add_life(add)
    _add_update(add("update", commands.update, "change a container's limits"))
    _add_checkpoints(add)
    _add_reports(add)
    return parser


_Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", help="append errors to this file")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")


def _add_creation(add: _Add) -> None:
    for name, command, help_ in (
        ("create", process_commands.create, "create a container; start runs it"),
        ("run", process_commands.run, "create and start a container"),
    ):
        sub = add(name, command, help_)
        sub.add_argument("id")
        sub.add_argument("--bundle", "-b", default=".", help="the directory with config.json")
        sub.add_argument("--no-pivot", action="store_true", help="chroot instead, where the host's root is a ramfs")
        sub.add_argument("--no-new-keyring", action="store_true", help="keep the caller's session keyring")
        _add_process(sub)
        if name == "run":
            sub.add_argument("--detach", "-d", action="store_true", help="do not wait for the end")
            sub.add_argument("--keep", action="store_true", help="do not delete the container at its end")
            sub.add_argument("--no-subreaper", action="store_true", help="do not adopt the container's orphans")


def _add_process(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--console-socket", metavar="PATH", help=_TTY_HELP)
    sub.add_argument("--pidfd-socket", metavar="PATH", help="send a pidfd of the process to this unix socket")
    sub.add_argument("--pid-file", metavar="PATH", help="write the process's id here")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="hand on N fds from 3 on")


def _add_exec(sub: argparse.ArgumentParser) -> None:
    sub.set_defaults(failure=_EXEC_FAILED)
    sub.add_argument("id")
    sub.add_argument("args", nargs=argparse.REMAINDER, metavar="PROGRAM [ARGUMENT...]")
    sub.add_argument("--process", "-p", metavar="PATH", help="a JSON document of the whole process")
    sub.add_argument("--tty", "-t", action="store_true")
    sub.add_argument("--user", "-u", metavar="UID[:GID]")
    sub.add_argument("--additional-gids", "-g", type=int, action="append", metavar="GID")
    sub.add_argument("--cwd", metavar="PATH")
    sub.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE")
    sub.add_argument("--cap", "-c", action="append", default=[], metavar="CAPABILITY")
    sub.add_argument("--no-new-privs", action="store_true")
    sub.add_argument("--apparmor", metavar="PROFILE")
    sub.add_argument("--process-label", metavar="LABEL", help="SELinux's")
    sub.add_argument("--cgroup", action="append", metavar="[CONTROLLER,...:]PATH", help="one below the container's")
    sub.add_argument("--ignore-paused", action="store_true", help="in a paused container, wait until it goes on")
    sub.add_argument("--detach", "-d", action="store_true", help="do not wait for the end")
    _add_process(sub)


def _add_life(add: _Add) -> None:
    add("start", commands.start, "execute a created container's program").add_argument("id")
    sub = add("kill", commands.kill, "send a signal to a container")
    sub.add_argument("--all", "-a", action="store_true", help="to all of its processes")
    sub.add_argument("id")
    sub.add_argument("signal", nargs="?", default="SIGTERM")
    sub = add("delete", commands.delete, "remove a container that has ended")
    sub.add_argument("--force", "-f", action="store_true", help="end it first; say nothing if it does not exist")
    sub.add_argument("id")
    add("pause", commands.pause, "freeze a container").add_argument("id")
    add("resume", commands.resume, "let a frozen container go on").add_argument("id")


_SIZES: Final = ("memory", "memory-reservation", "memory-swap", "kernel-memory", "kernel-memory-tcp")


def _add_update(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--resources", "-r", metavar="PATH", help="a JSON document of LinuxResources, - for stdin")
    for option, _, kind in commands.LIMIT_OPTIONS:
        type_: Callable[[str], Any] = _size if option in _SIZES else kind
        sub.add_argument(f"--{option}", type=type_, metavar="SIZE" if option in _SIZES else "VALUE")
    sub.add_argument("--l3-cache-schema", metavar="SCHEMA", help="Intel RDT's")
    sub.add_argument("--mem-bw-schema", metavar="SCHEMA", help="Intel RDT's")
    sub.add_argument("id")


def _add_checkpoints(add: _Add) -> None:
    dump = add("checkpoint", checkpoint_commands.checkpoint, "save a container's processes with CRIU")
    dump.add_argument("--leave-running", action="store_true", help="let them go on")
    dump.add_argument("--tcp-skip-in-flight", action="store_true", help="leave out connections not established yet")
    dump.add_argument("--link-remap", action="store_true", help="link files that have no name any more")
    dump.add_argument("--pre-dump", action="store_true", help="save memory only, and go on: the rest comes later")
    dump.add_argument("--parent-path", default="", metavar="PATH", help="an earlier pre-dump, relative to the images")
    dump.add_argument("--page-server", metavar="ADDRESS:PORT", help="who takes the memory instead of the image path")
    dump.add_argument("--status-fd", type=int, default=-1, metavar="FD", help="told once pages may be asked for")
    restore = add("restore", checkpoint_commands.restore, "make a container from a checkpoint")
    restore.add_argument("--bundle", "-b", default=".", help="the directory with config.json")
    restore.add_argument("--console-socket", metavar="PATH", help=_TTY_HELP)
    restore.add_argument("--pid-file", metavar="PATH", help="write the process's id here")
    restore.add_argument("--detach", "-d", action="store_true", help="do not wait for the end")
    restore.add_argument("--no-subreaper", action="store_true", help="do not adopt the container's orphans")
    restore.add_argument("--no-pivot", action="store_true", help="accepted; it is CRIU that changes the root")
    restore.set_defaults(no_new_keyring=False, preserve_fds=0, keep=False, pidfd_socket=None)
    restore.add_argument("--lsm-profile", default="", metavar="KIND:PROFILE", help="instead of the spec's label")
    restore.add_argument("--lsm-mount-context", default="", metavar="CONTEXT", help="SELinux's, for new file systems")
    for sub in (dump, restore):
        sub.add_argument("--image-path", default="", metavar="PATH", help="where the checkpoint is: ./checkpoint")
        sub.add_argument("--work-path", default="", metavar="PATH", help="keep CRIU's log here")
        sub.add_argument("--tcp-established", action="store_true", help="open connections, too")
        sub.add_argument("--ext-unix-sk", action="store_true", help="unix sockets whose other end is outside, too")
        sub.add_argument("--shell-job", action="store_true", help="even if it has the caller's terminal")
        sub.add_argument("--file-locks", action="store_true", help="file locks, too")
        sub.add_argument("--auto-dedup", action="store_true", help="memory that is newer elsewhere is dropped here")
        sub.add_argument("--lazy-pages", action="store_true", help="move memory when it is needed, by userfaultfd")
        modes = ("soft", "full", "strict", "ignore")
        sub.add_argument("--manage-cgroups-mode", choices=modes, default="", help="what CRIU does with cgroups")
        sub.add_argument("--empty-ns", action="append", default=[], metavar="NAMESPACE", help="leave its content out")
        sub.add_argument("id")


def _add_reports(add: _Add) -> None:
    add("state", reports.state_, "print a container's state").add_argument("id")
    sub = add("list", reports.list_, "list containers")
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")
    sub = add("ps", reports.ps, "list a container's processes")
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub.add_argument("id")
    sub.add_argument("ps_options", nargs=argparse.REMAINDER, help="options for ps(1)")
    sub = add("events", reports.events, "print a container's counters and its OOM kills")
    sub.add_argument("--stats", action="store_true", help="the counters once, then end")
    sub.add_argument("--interval", type=_duration, default=5.0, metavar="DURATION", help="such as 5s")
    sub.add_argument("id")
    add("features", reports.features_, "print what this runtime can do")
    sub = add("spec", reports.spec, "write a config.json to start from")
    sub.add_argument("--bundle", "-b", default=".")
    sub.add_argument("--rootless", action="store_true", help="for one who is not root")
