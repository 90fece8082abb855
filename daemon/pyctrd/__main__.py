"""pyctrd: the daemon.

It starts the zygote before it imports grpc: shims are forked from a process without threads.
"""

import argparse
import faulthandler
import gc
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pyctr_wire import standard_streams
from pyctrd.config import checks, loading
from pyctrd.config.tables import Config, Grpc, LogLevel
from pyctrd.config.values import ConfigError

_DESCRIPTION: Final = """\
Supervise containers: serve containerd's API, and keep the containers running whatever happens to
this process.

Signals: SIGTERM, SIGINT and SIGQUIT stop the daemon, never a container; SIGHUP reads the log level
again; SIGUSR1 writes the stack of every thread to standard error; SIGUSR2 is ignored.
"""

_TAKE_OVER: Final = "--take-over"
_UPGRADE_TIMEOUT: Final = 180.0  # seconds
_PUBLISH_TIMEOUT: Final = 10.0  # seconds


def _path(text: str) -> Path:
    """Return a path; "", an unset variable of a script, would be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def _log_level(text: str) -> LogLevel:
    try:
        return LogLevel(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(LogLevel)}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyctrd", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", "-c", type=_path, metavar="FILE", help=f"default: {loading.default_path()}")
    parser.add_argument("--root", type=_path, metavar="DIR", help="what survives a reboot; overrides the configuration")
    parser.add_argument("--state", type=_path, metavar="DIR", help="sockets and bundles; overrides the configuration")
    parser.add_argument(
        "--address",
        "-address",
        "-a",
        action="append",
        metavar="ADDRESS",
        help="a path, or tcp://HOST:PORT; may be repeated; default: pyctrd.sock in the state directory",
    )
    parser.add_argument("--log-level", "-l", type=_log_level, metavar="LEVEL", help="debug … error")
    parser.add_argument("--version", "-v", action="store_true", help="say which version this is")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    config = commands.add_parser("config", help="print the default configuration, or check one")
    config.add_argument(
        "action",
        choices=("default", "check"),
        help="default: print all settings with their defaults; check: read FILE, and say what is wrong with it",
    )
    config.add_argument("file", nargs="?", type=_path, metavar="FILE", help="if left out, what --config says")
    check = commands.add_parser("check", help="say what this machine lacks for something, and how to get it")
    check.add_argument("what", choices=("rootless",), help="rootless: to be started by an ordinary user")
    commands.add_parser("upgrade", help="let the program that is installed now take over from the running daemon")
    publish = commands.add_parser("publish", help="tell a daemon's subscribers of an event, as older shims do")
    publish.add_argument("--topic", "-topic", required=True, metavar="TOPIC", help="/tasks/oom, for one")
    publish.add_argument("--namespace", "-namespace", required=True, metavar="NAMESPACE", help="whose event it is")
    migrate = commands.add_parser(
        "migrate", help="copy what another daemon has: containerd's, or one that speaks its API"
    )
    migrate.add_argument("--from", dest="source", required=True, metavar="ADDRESS", help="the socket to copy from")
    migrate.add_argument("--to", dest="target", metavar="ADDRESS", help="if left out, the socket of this configuration")
    # For a daemon that is being replaced, which starts us so: see pyctrd.upgrade.
    parser.add_argument(_TAKE_OVER, action="store_true", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    standard_streams.fill()
    options = _parser().parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        sys.stdout.write(f"pyctrd {version('pyctr')}\n")
        return 0
    if options.command == "check":
        from pyctrd.rootless import checks

        return checks.check()
    if options.command == "config" and options.file:
        options.config = options.file
    if options.command == "config" and options.action == "default":
        from pyctrd.config.example import render

        sys.stdout.write(render(loading.defaults()))
        return 0
    try:
        config = _configured(options)
    except ConfigError as error:
        sys.stderr.write(f"pyctrd: {error}\n")
        return 1
    if options.command == "config":
        source = options.config or loading.default_path()
        sys.stdout.write(f"{source}: {'good' if source.exists() else 'not there, so that the defaults hold'}\n")
        return 0
    if options.command == "upgrade":
        return _upgrade(config)
    if options.command == "publish":
        return _publish(config, options)
    if options.command == "migrate":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it logs repeats our errors
        from pyctrd.migration import command

        return command.run(options.source, options.target or config.address)
    return _serve(config, options, sys.argv[1:] if arguments is None else arguments)


def _upgrade(config: Config) -> int:
    """Ask the running daemon to let this program take over."""
    import grpc

    from pyctr_wire.pyctr import engine_pb2, engine_pb2_grpc

    with grpc.insecure_channel(f"unix:{config.address}") as channel:
        try:
            engine = engine_pb2_grpc.EngineStub(channel)
            answer = engine.Upgrade(engine_pb2.UpgradeRequest(), timeout=_UPGRADE_TIMEOUT)
        except grpc.RpcError as error:
            return _unanswered(config, error)
    sys.stdout.write(f"pyctrd {answer.version} serves now, pid {answer.pid}\n")
    return 0


def _publish(config: Config, options: argparse.Namespace) -> int:
    """Publish the marshalled google.protobuf.Any on standard input: what a shim's -publish-binary must understand."""
    import grpc
    from google.protobuf import any_pb2
    from google.protobuf.message import DecodeError

    from pyctr_wire.containerd.services.events.v1 import events_pb2, events_pb2_grpc

    try:
        request = events_pb2.PublishRequest(topic=options.topic, event=any_pb2.Any.FromString(sys.stdin.buffer.read()))
    except DecodeError:
        sys.stderr.write("pyctrd: publish: standard input holds no google.protobuf.Any\n")
        return 1
    with grpc.insecure_channel(f"unix:{config.address}") as channel:
        try:
            events = events_pb2_grpc.EventsStub(channel)
            metadata = (("containerd-namespace", options.namespace),)
            events.Publish(request, timeout=_PUBLISH_TIMEOUT, metadata=metadata)
        except grpc.RpcError as error:
            return _unanswered(config, error)
    return 0


def _unanswered(config: Config, error: Any) -> int:
    """Tell why the running daemon did not do what it was asked for; return the exit status."""
    reason = error.details() or ""
    if "failed to connect" in reason:  # grpc's story of its attempts, of which the kernel's word is the last
        reason = f"nobody answers: {reason.rpartition('error: ')[2]}; is pyctrd running? --state DIR says where"
    sys.stderr.write(f"pyctrd: {config.address}: {reason}\n")
    return 1


def _configured(options: argparse.Namespace) -> Config:
    """Return the configuration, with what the command line says on top. Raises ConfigError."""
    config = loading.load(options.config)
    if options.root:
        config = config._replace(root=_absolute(options.root))
    if options.state:
        config = config._replace(state=_absolute(options.state))
    if options.address:
        config = config._replace(grpc=_addressed(config.grpc, options.address))
    if options.log_level:
        config = config._replace(log=config.log._replace(level=options.log_level))
    checks.check(config, "command line")
    return config


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise ConfigError(f"command line: {path}: there is no working directory any more below which it is") from error


def _addressed(grpc: Grpc, addresses: Sequence[str]) -> Grpc:
    """Return `grpc` with these addresses only; the first path is where this machine's clients and shims look."""
    paths = [address for address in addresses if not address.startswith("tcp:")]
    first = paths[0] if paths else grpc.address
    return grpc._replace(address=first, addresses=tuple(address for address in addresses if address != first))


def _become_root(config: Config) -> bool:
    """Enter a user namespace in which this user is root; False, with the reason told, if there is none to be had."""
    from pyctr_sys.user_namespace import CannotEnter
    from pyctrd.rootless import entry

    try:
        entry.enter(config.state)
    except CannotEnter as error:
        sys.stderr.write(
            f"pyctrd: {error}; it needs root, or a user namespace, and `pyctr check rootless` says what that takes\n"
        )
        return False
    return True


def _serve(config: Config, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if os.geteuid() != 0 and not _become_root(config):
        return 1
    # All that is loaded from here on stays. The collector, which would go through it again and again, comes back
    # when the daemon is complete.
    gc.disable()
    from pyctrd import log

    log.set_up(config.log.level, config.log.format)
    # Sockets must not be open to others before their mode is set, directories never to be written by them.
    os.umask(0o022)
    # Not faulthandler.register: it reads the threads' frames from within the signal, while they change, and crashes.
    signal.signal(signal.SIGUSR1, lambda _number, _frame: faulthandler.dump_traceback())
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    from pyctrd.placement import enter_own_cgroup
    from pyctrd.runtime.zygote_client import Zygote
    from pyctrd.upgrade import HANDOVER_FD, Predecessor

    enter_own_cgroup()
    # For every shim, also those that start cold.
    os.environ["PYCTR_SECCOMP_CACHE"] = str(config.root / "seccomp")
    # Before the zygote, which must not inherit its socket.
    predecessor = Predecessor(HANDOVER_FD) if options.take_over else None
    zygote = Zygote()
    zygote.spawn()
    # Every shim and every client takes a descriptor. Containers, which descend from the zygote, keep the
    # limit that we were given.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    # grpc has a handler for forks, which never happen here, and logs of its own, which repeat ours.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Its thread that waits for calls reads them itself, instead of being told by threads of another pool: half the
    # switches. A grpc that does not know one of these names ignores it.
    os.environ.setdefault(
        "GRPC_EXPERIMENTS",
        "-event_engine_listener,-event_engine_client,-event_engine_for_all_other_endpoints",
    )
    import uvloop

    from pyctrd.supervisor import Refused, Supervisor, Unsuccessful

    command = [sys.executable, "-m", "pyctrd", *(argument for argument in arguments if argument != _TAKE_OVER)]
    supervised = Supervisor(config, zygote, lambda: _configured(options), [*command, _TAKE_OVER], predecessor)
    try:
        uvloop.run(supervised.run())
    except Refused as error:
        sys.stderr.write(f"pyctrd: {error}\n")
        return 1
    except Unsuccessful:
        # Everything has been closed: what can be done is to start again, which recovers everything.
        zygote.close()
        os.execv(command[0], command)  # noqa: S606 - our own command line
    finally:
        zygote.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
