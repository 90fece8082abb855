"""The command tree. A command's module is imported when that command runs, not before."""

import importlib
from typing import TYPE_CHECKING, Any, Final

import click

from pyctr import completing, interrupts
from pyctr.session import DEFAULT_ADDRESS, DEFAULT_NAMESPACE, FORMAT_HELP, Session, default_address, default_namespace
from pyctr.transport import TlsFiles

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name → (module below pyctr.commands, attribute, what `--help` says)
_ROOT: Final[dict[str, tuple[str, str, str]]] = {
    "run": ("run", "run", "Make a container from an image and run it"),
    "create": ("run", "create", "Make a container and do not start it"),
    "start": ("start", "start", "Start containers that were made or have ended"),
    "stop": ("lifecycle", "stop", "Stop containers: their stop signal, then SIGKILL"),
    "kill": ("lifecycle", "kill", "Send a signal to containers"),
    "pause": ("lifecycle", "pause", "Freeze all processes of containers"),
    "unpause": ("lifecycle", "unpause", "Let frozen containers go on"),
    "checkpoint": ("checkpoint", "checkpoint", "Save a running container in a directory"),
    "restart": ("start", "restart", "Stop containers and start them again"),
    "wait": ("lifecycle", "wait", "Wait until containers end and print their exit codes"),
    "rm": ("lifecycle", "rm", "Remove containers"),
    "update": ("update", "update", "Change when containers are started again"),
    "rename": ("lifecycle", "rename", "Give a container another name"),
    "ps": ("containers", "ps", "List containers"),
    "inspect": ("containers", "inspect", "Show everything about containers or images"),
    "top": ("containers", "top", "Show the processes of a container"),
    "stats": ("stats", "stats", "Show what containers use"),
    "logs": ("logs", "logs", "Show what a container wrote"),
    "exec": ("exec", "exec_", "Run a program in a running container"),
    "attach": ("start", "attach", "Connect this terminal to a running container"),
    "events": ("events", "events", "Show what happens, as it happens"),
    "image": ("images", "image", "Images: ls|pull|push|tag|rm|inspect|import|export|from-host"),
    "content": ("content", "content", "Stored blobs: ls|fetch|rm"),
    "volume": ("volumes", "volume", "Volumes: create|ls|inspect|rm|prune"),
    "network": ("network", "network", "Networks of Kubernetes' pods: init"),
    "snapshot": ("snapshots", "snapshot", "Snapshots: ls|rm|usage"),
    "namespace": ("namespaces", "namespace", "Namespaces: ls|create|label|rm"),
    "lease": ("leases", "lease", "Leases: ls|create|rm"),
    "gc": ("system", "gc", "Collect garbage now"),
    "df": ("system", "df", "Show what takes disk space"),
    "ops": ("system", "ops", "Show what the daemon is doing"),
    "why": ("system", "why", "Show what happened to a container or an operation"),
    "plugin": ("system", "plugin", "The daemon's plugins: ls"),
    "info": ("system", "info", "Show what the daemon is and has"),
    "check": ("check", "check", "Find out what this machine lacks: rootless"),
    "version": ("system", "version", "Show the versions of pyctr and its daemon"),
    "login": ("login", "login", "Store credentials for a registry"),
    "logout": ("login", "logout", "Forget credentials for a registry"),
    "completion": ("completion", "completion", "Print a completion script for a shell"),
}
_ALIASES: Final = {
    "images": ("image", "ls"), "pull": ("image", "pull"), "push": ("image", "push"), "rmi": ("image", "rm"),
    "tag": ("image", "tag"),
}  # fmt: skip
# Docker's words for what has another one here, or is somebody else's work.
_DOCKERS: Final = {
    "build": "buildkitd builds on this daemon, as docs/clients.md says",
    "commit": "nerdctl, a client of this daemon, can",
    "compose": "nerdctl, a client of this daemon, can",
    "container": "its commands have no word in front: ps, rm, inspect, …",
    "cp": "tar can: pyctr exec NAME tar -c -C FOLDER FILE | tar -x",
    "diff": "ctr snapshots diff, on this daemon's socket, can",
    "export": "pyctr exec NAME tar -c -C / . writes the files; pyctr image export writes an image",
    "help": "say --help, also behind a command",
    "history": "pyctr image inspect tells the layers",
    "import": "pyctr image import",
    "load": "pyctr image import FILE",
    "port": "containers have no network of their own yet",
    "save": "pyctr image export -o FILE NAME",
    "search": "a registry cannot be searched",
    "system": "its commands have no word in front: df, events, info; gc removes what nothing needs",
}
_EPILOG: Final = (
    f"{', '.join(_ALIASES)} are short for {', '.join(' '.join(path) for path in _ALIASES.values())}."
    " Exit code: 0 if all went well, 1 if something failed, 2 for a command line that is wrong;"
    " run, create and exec have docker's."
)


class LazyGroup(click.Group):
    """The root group: knows its commands' names and imports a command on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(_ROOT)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, also by docker's short names for commands of `image`."""
        if cmd_name in _ALIASES:
            noun, verb = _ALIASES[cmd_name]
            group = self.get_command(ctx, noun)
            return group.get_command(ctx, verb) if isinstance(group, click.Group) else None
        if cmd_name not in _ROOT:
            return None
        module, attribute, _ = _ROOT[cmd_name]
        with interrupts.held():
            command: Any = getattr(importlib.import_module(f"pyctr.commands.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem[str]]":
        """Offer commands, without importing any, docker's short names too, and options."""
        from click.shell_completion import CompletionItem

        offered = {name: text for name, (_, _, text) in _ROOT.items()}
        offered |= {alias: f"Short for {' '.join(path)}" for alias, path in _ALIASES.items()}
        found = [CompletionItem(name, help=text) for name, text in offered.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _ROOT.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest name for one that is not there."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], _ROOT, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            if args[0] in _DOCKERS:
                hint = f" Instead: {_DOCKERS[args[0]]}."
            raise click.UsageError(error.message + hint, ctx) from None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.option(
    "--address",
    "-a",
    metavar="ADDRESS",
    default=default_address,
    help="The daemon's socket, or tcp://HOST:PORT of another machine's; if left out, $PYCTR_ADDRESS,"
    f" $CONTAINERD_ADDRESS, or {DEFAULT_ADDRESS}.",
)
@click.option(
    "--namespace",
    "-n",
    metavar="NAME",
    default=default_namespace,
    shell_complete=completing.namespaces,
    help=f"If left out, $PYCTR_NAMESPACE, $CONTAINERD_NAMESPACE, or {DEFAULT_NAMESPACE}.",
)
@click.option("--format", "format_", metavar="FORMAT", default="table", help=FORMAT_HELP)
@click.option(
    "--tls-ca",
    metavar="FILE",
    envvar="PYCTR_TLS_CA",
    shell_complete=completing.files,
    help="PEM: who may be the daemon at tcp://.",
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    envvar="PYCTR_TLS_CERT",
    shell_complete=completing.files,
    help="PEM: our certificate, for tcp://.",
)
@click.option(
    "--tls-key", metavar="FILE", envvar="PYCTR_TLS_KEY", shell_complete=completing.files, help="PEM: its private key."
)
@click.version_option(package_name="pyctr", prog_name="pyctr")
@click.pass_context
def root(
    ctx: click.Context,
    address: str,
    namespace: str,
    format_: str,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Run and manage containers."""
    session = Session(address, namespace, format_, TlsFiles.of(tls_ca, tls_cert, tls_key))
    ctx.obj = session
    ctx.call_on_close(session.close)
