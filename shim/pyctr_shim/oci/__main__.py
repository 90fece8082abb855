"""`pyctr-oci`: the runtime as a command, with runc's subcommands and options.

What is not supported is refused by the option's name; `--log FILE --log-format json` gets errors as
the lines that containerd's shim reads.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pyctr_shim.oci import commands, process_commands
from pyctr_shim.oci.errors import OciError, describe

ROOT: Final = "/run/pyctr/oci"
_TTY_HELP: Final = "send the terminal's master side to this unix socket"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, for `run` and `exec` that of the program."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = _refuse_systemd if options.systemd_cgroup else options.command
    try:
        return command(options)
    except OciError as error:
        text = str(error)
    except OSError as error:
        text = describe(error)
    _log(options, text)
    return 1


def _refuse_systemd(_options: argparse.Namespace) -> int:
    raise OciError("--systemd-cgroup: the systemd cgroup driver is not supported")


class _Version(argparse.Action):
    """Print the version and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(commands.version_text() + "\n")
        parser.exit()


def _log(options: argparse.Namespace, text: str) -> None:
    sys.stderr.write(f"pyctr-oci: {text}\n")
    if not options.log:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.log_format == "json":
        line = json.dumps({"level": "error", "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level=error msg={json.dumps(text)}'
    with open(options.log, "a") as file:
        file.write(line + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyctr-oci", description="An OCI runtime.", allow_abbrev=False)
    parser.add_argument("--version", "-v", action=_Version, nargs=0)
    parser.add_argument("--debug", action="store_true", help="accepted; there is no debug log")
    parser.add_argument("--log", help="append errors to this file")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--root", default=ROOT, help="where the containers' states are kept")
    parser.add_argument("--systemd-cgroup", action="store_true", help="refused: cgroups are made directly")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help_, description=help_, allow_abbrev=False)
        sub.set_defaults(command=command)
        return sub

    _add_creation(add)
    _add_exec(add("exec", process_commands.exec_, "execute a process in a running container"))
    _add_life(add)
    _add_reports(add)
    return parser


_Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


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


def _add_process(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--console-socket", metavar="PATH", help=_TTY_HELP)
    sub.add_argument("--pid-file", metavar="PATH", help="write the process's id here")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="hand on N fds from 3 on")


def _add_exec(sub: argparse.ArgumentParser) -> None:
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
    sub = add("update", commands.update, "change a container's limits")
    sub.add_argument("--resources", "-r", metavar="PATH", help="a JSON document of LinuxResources, - for stdin")
    for option, _, kind in commands.LIMIT_OPTIONS:
        sub.add_argument(f"--{option}", type=kind)
    sub.add_argument("id")


def _add_reports(add: _Add) -> None:
    add("state", commands.state_, "print a container's state").add_argument("id")
    sub = add("list", commands.list_, "list containers")
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")
    sub = add("ps", commands.ps, "list a container's processes")
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub.add_argument("id")
    sub.add_argument("ps_options", nargs=argparse.REMAINDER, help="options for ps(1)")
    sub = add("events", commands.events, "print a container's counters")
    sub.add_argument("--stats", action="store_true", help="once, then end")
    sub.add_argument("--interval", type=float, default=5.0, metavar="SECONDS")
    sub.add_argument("id")
    add("features", commands.features_, "print what this runtime can do")
    sub = add("spec", commands.spec, "write a config.json to start from")
    sub.add_argument("--bundle", "-b", default=".")


if __name__ == "__main__":
    sys.exit(main())
