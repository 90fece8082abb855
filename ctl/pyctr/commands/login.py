"""`login` and `logout`: credentials for registries, kept where docker keeps them."""

import sys

import click

from pyctr import credentials
from pyctr.connection import ENGINE, Connection
from pyctr.errors import CommandError
from pyctr.http2 import ConnectionLost
from pyctr.session import Session, pass_session
from pyctr_wire.errors import PermissionDenied, Unauthenticated, Unavailable


@click.command()
@click.option("--username", "-u", metavar="NAME", help="The user's name; asked for if left out.")
@click.option(
    "--password",
    "-p",
    metavar="SECRET",
    help="The password; asked for if left out. Others can see it in the process list.",
)
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.argument("registry", default="docker.io")
@pass_session
def login(session: Session, *, registry: str, username: str | None, password: str | None, password_stdin: bool) -> None:
    """Check credentials with REGISTRY, docker.io if it is left out, and store them where docker keeps its own.

    The daemon asks the registry, as it does for a pull.
    """
    if password_stdin and password is not None:
        raise CommandError("--password and --password-stdin exclude each other")
    if password_stdin:
        if username is None:
            raise CommandError("--password-stdin needs --username")
        password = sys.stdin.read().rstrip("\r\n")
    if (username is None or password is None) and not sys.stdin.isatty():
        raise CommandError("there is no terminal to ask at: give --username and --password-stdin")
    name = username if username is not None else click.prompt("Username")
    secret = password if password is not None else click.prompt("Password", hide_input=True)
    _check(session.connection, registry, name, secret)
    place = credentials.store(registry, credentials.Credential(name, secret))
    click.echo(f"Login succeeded; the credentials are in {place}")


@click.command()
@click.argument("registry", default="docker.io")
def logout(*, registry: str) -> None:
    """Forget the credentials for REGISTRY, docker.io if it is left out."""
    if credentials.forget(registry):
        click.echo(f"Removed the credentials for {registry}")
    else:
        click.echo(f"There were none for {registry}")


def _check(connection: Connection, registry: str, name: str, secret: str) -> None:
    """Have the daemon ask the registry whether it knows the user: it is the one that pulls. Raises CommandError."""
    from pyctr_wire.pyctr import engine_pb2

    request = engine_pb2.CheckLoginRequest(registry=credentials.host_of(registry), username=name, secret=secret)
    try:
        connection.call(ENGINE, "CheckLogin", request, engine_pb2.CheckLoginResponse)
    except (Unauthenticated, PermissionDenied):
        raise CommandError(f"{registry} refuses this user name and password") from None
    except ConnectionLost:  # the daemon's
        raise
    except Unavailable as error:
        raise CommandError(f"{registry} cannot be reached: {error}") from None
