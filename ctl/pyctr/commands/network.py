"""`network`: what Kubernetes' pods are attached to."""

import ipaddress
import json
import os
import secrets
from typing import Any, Final

import click

from pyctr.errors import CommandError
from pyctr.output_file import written

_FILE: Final = "10-pyctr.conflist"
_SUFFIXES: Final = (".conf", ".conflist", ".json")
_SUBNET: Final = "10.204.0.0/16"
_IPV6: Final = "/proc/net/if_inet6"
_SMALLEST: Final = {4: 29, 6: 126}  # what leaves pods an address beside the bridge's own


@click.group()
def network() -> None:
    """Networks of Kubernetes' pods."""


@network.command()
@click.option(
    "--directory",
    metavar="DIRECTORY",
    default="/etc/cni/net.d",
    show_default=True,
    help="Where the daemon looks for networks.",
)
@click.option(
    "--subnet",
    "subnets",
    metavar="CIDR",
    multiple=True,
    help=f"Where pods' addresses come from, one of each; repeatable. If left out, {_SUBNET} and, where there is IPv6,"
    " a private subnet that is drawn at random.",
)
@click.option("--force", is_flag=True, help="Write it although there is one, or another network.")
def init(*, directory: str, subnets: tuple[str, ...], force: bool) -> None:
    """Write a network for the pods of this machine.

    Pods are on a bridge, go out with this machine's address, and may have ports of it. It needs no daemon and takes
    effect at once; pods that run keep what they have.
    """
    document = _conflist([_checked(text) for text in subnets or _default_subnets()])
    try:
        os.makedirs(directory, exist_ok=True)
        others = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIXES))
    except OSError as error:
        raise CommandError(f"{directory}: {error.strerror}") from None
    if others and not force:
        names = ", ".join(others)
        raise CommandError(f"{directory} has {names} already; --force writes {_FILE} beside it or anew")
    path = os.path.join(directory, _FILE)
    with written(path) as file:
        file.write(json.dumps(document, indent=2).encode() + b"\n")
    click.echo(path)
    if earlier := [name for name in others if name < _FILE]:
        click.echo(f"pyctr: the daemon goes on using {earlier[0]}, which comes first", err=True)


def _default_subnets() -> list[str]:
    if not os.path.exists(_IPV6):
        return [_SUBNET]
    # A prefix that is unlike anybody else's. Source: RFC 4193, section 3.2.
    prefix = b"\xfd" + secrets.token_bytes(5) + bytes(10)
    return [_SUBNET, f"{ipaddress.IPv6Address(prefix)}/64"]


def _checked(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as error:
        raise CommandError(f"--subnet {text}: {error}") from None
    if subnet.prefixlen > _SMALLEST[subnet.version]:
        raise CommandError(f"--subnet {text}: it is too small for pods")
    return subnet


def _conflist(subnets: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> dict[str, Any]:
    """Return the network as CNI's configuration. Source: CNI specification 1.0.0; the plugins' documentation."""
    defaults = {4: "0.0.0.0/0", 6: "::/0"}
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(subnet)}] for subnet in subnets],
        "routes": [{"dst": defaults[version]} for version in sorted({subnet.version for subnet in subnets})],
    }
    bridge = {
        "type": "bridge",
        "bridge": "pyctr0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "1.0.0", "name": "pyctr", "plugins": [bridge, portmap, {"type": "loopback"}]}
