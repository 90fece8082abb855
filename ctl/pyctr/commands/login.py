"""`login` and `logout`: credentials for registries, kept where docker keeps them."""

import base64
import http.client
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Final

import click

from pyctr import credentials
from pyctr.errors import CommandError

_TIMEOUT: Final = 30.0  # seconds
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_FIELD: Final = re.compile(r'(\w+)="([^"]*)"')
_LOCAL: Final = ("localhost", "127.0.0.1", "[::1]")


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
def login(*, registry: str, username: str | None, password: str | None, password_stdin: bool) -> None:
    """Check credentials with REGISTRY, docker.io if it is left out, and store them where docker keeps its own."""
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
    _check(registry, name, secret)
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


def _check(registry: str, name: str, secret: str) -> None:
    """Ask the registry whether it knows the user. Raises CommandError.

    Source: distribution's token authentication specification.
    """
    host = credentials.host_of(registry)
    if host == "docker.io":
        host = _DOCKER_HUB_HOST
    scheme = "http" if host.rpartition(":")[0] in _LOCAL or host in _LOCAL else "https"
    basic = "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()
    url = f"{scheme}://{host}/v2/"
    status, challenge = _get(url, None)
    if status == 401 and challenge.lower().startswith("basic"):
        status, _ = _get(url, basic)
    elif status == 401 and challenge.lower().startswith("bearer"):
        fields = dict(_FIELD.findall(challenge))
        realm = fields.get("realm", "")
        if urllib.parse.urlsplit(realm).scheme not in ("http", "https"):
            raise CommandError(f"{registry} names no place to get a token from")
        query = urllib.parse.urlencode({"service": fields.get("service", ""), "account": name})
        status, _ = _get(f"{realm}?{query}", basic)
    if status in (401, 403):
        raise CommandError(f"{registry} refuses this user name and password")
    if status >= 400:
        raise CommandError(f"{registry} answers {status}: is it a registry?")


def _get(url: str, authorization: str | None) -> tuple[int, str]:
    """Return a URL's status and its WWW-Authenticate header; redirects are not followed with credentials."""
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})  # noqa: S310
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("WWW-Authenticate", "")
    except urllib.error.URLError as error:
        raise CommandError(f"{url} cannot be reached: {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise CommandError(f"{url} cannot be reached: {error}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect as the answer."""

    def redirect_request(self, *_: object) -> None:
        """Follow nothing."""
