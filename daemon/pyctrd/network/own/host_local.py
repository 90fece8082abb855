"""host-local: addresses of this machine's ranges, given away and taken back by files.

    <dataDir>/<network>/<address>               "<container>\\r\\n<interface>": who has the address
    <dataDir>/<network>/last_reserved_ip.<n>    the address of range set n that was given away last
    <dataDir>/<network>/lock                    flock held by whoever looks at or changes these

The program has the same files, and either may take back what the other gave. Source: the CNI plugins' documentation,
"host-local IP address management".
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple

from pyctrd.network import results
from pyctrd.network.errors import PluginError
from pyctrd.network.own.keys import knows
from pyctrd.network.plugins import Call, Plugins
from pyctrd.network.results import Address, Result, Route

_DEFAULT_DIRECTORY: Final = "/var/lib/cni/networks"
_KNOWN: Final = frozenset(
    {"type", "dataDir", "ranges", "routes", "resolvConf", "subnet", "rangeStart", "rangeEnd", "gateway"}
)
_LAST: Final = "last_reserved_ip."
_NO_IP_LEFT: Final = 114  # what the program says then

_Ip = IPv4Address | IPv6Address


class Range(NamedTuple):
    """Addresses from `first` to `last` of a subnet, but for the gateway's."""

    subnet: IPv4Network | IPv6Network
    first: _Ip
    last: _Ip
    gateway: _Ip

    def __contains__(self, address: object) -> bool:
        """Return whether an address may be given away."""
        assert isinstance(address, IPv4Address | IPv6Address)
        within = address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)
        return within and address != self.gateway


class HostLocal:
    """The plugin."""

    def can(self, configuration: Mapping[str, Any]) -> bool:
        """Return whether we know all that is asked for."""
        ipam = configuration.get("ipam") or {}
        args = (configuration.get("args") or {}).get("cni") or {}
        return knows(ipam, _KNOWN) and not args.get("ips") and not args.get("ranges")

    def call(self, call: Call, _: Plugins) -> Mapping[str, Any] | None:
        """Do it. Raises PluginError, OSError; ValueError, KeyError, TypeError for what cannot be a configuration."""
        configuration = call.configuration
        ipam = configuration.get("ipam") or {}
        store = _Store(Path(ipam.get("dataDir") or _DEFAULT_DIRECTORY) / configuration["name"])
        match call.command:
            case "ADD":
                return results.render(_add(call, ipam, store), configuration["cniVersion"])
            case "DEL":
                with store.locked():
                    store.release(call.container, call.interface)
            case "GC":
                valid = configuration.get("cni.dev/valid-attachments") or ()
                with store.locked():
                    store.keep({(one["containerID"], one["ifname"]) for one in valid})
            case "CHECK":
                with store.locked():
                    if not any(who == (call.container, call.interface) for _, who in store):
                        raise PluginError(call.kind, call.command, f"{call.container} has no address")
        return None


def _add(call: Call, ipam: Mapping[str, Any], store: "_Store") -> Result:
    sets, wanted = _range_sets(call.configuration, ipam), _wanted(call)
    addresses: list[Address] = []
    with store.locked():
        try:
            for number, ranges in enumerate(sets):
                asked = next((one for one in wanted if any(one in each for each in ranges)), None)
                addresses.append(_reserve(call, store, number, ranges, asked))
                wanted = [one for one in wanted if one != asked]
            _refuse_strangers(call, wanted)
        except PluginError:
            for one in addresses:
                store.take_back(one.address.ip)
            raise
    routes = tuple(Route(one["dst"], one.get("gw") or "") for one in ipam.get("routes") or ())
    return Result((), tuple(addresses), routes, _dns(ipam.get("resolvConf")))


def _reserve(call: Call, store: "_Store", number: int, ranges: Sequence[Range], asked: _Ip | None) -> Address:
    """Give away the address that was asked for, or the next one after the last that was."""
    who = (call.container, call.interface)
    taken = dict(store)
    if any(owner == who and any(one in each for each in ranges) for one, owner in taken.items()):
        raise PluginError(call.kind, call.command, f"{call.container} has an address already on {call.interface}")
    for address, found in _after(store.last(number), ranges):
        if address not in taken and asked in (None, address):
            store.reserve(address, who)
            store.set_last(number, address)
            return Address(ip_interface(f"{address}/{found.subnet.prefixlen}"), str(found.gateway))
    if asked is not None:
        raise PluginError(call.kind, call.command, f"{asked} is taken")
    names = ", ".join(f"{each.first}-{each.last}" for each in ranges)
    raise PluginError(call.kind, call.command, f"no IP addresses available in range set: {names}", _NO_IP_LEFT)


def _refuse_strangers(call: Call, wanted: Sequence[_Ip]) -> None:
    if wanted:
        raise PluginError(call.kind, call.command, f"{wanted[0]} is in none of the ranges")


def _after(last: _Ip | None, ranges: Sequence[Range]) -> Iterator[tuple[_Ip, Range]]:
    """Return all addresses of the ranges once, those first that follow `last`."""
    start = next((index for index, each in enumerate(ranges) if last is not None and last in each), None)
    parts: list[tuple[Range, int, int]] = [(each, int(each.first), int(each.last)) for each in ranges]
    if start is not None:
        assert last is not None
        here = ranges[start]
        parts = [
            (here, int(last) + 1, int(here.last)),
            *parts[start + 1 :],
            *parts[:start],
            (here, int(here.first), int(last)),
        ]
    for each, first, end in parts:
        for number in range(first, end + 1):
            address = type(each.first)(number)
            if address != each.gateway:
                yield address, each


def _range_sets(configuration: Mapping[str, Any], ipam: Mapping[str, Any]) -> list[list[Range]]:
    """Return the range sets, of each of which a pod gets an address."""
    sets = list((configuration.get("runtimeConfig") or {}).get("ipRanges") or ())
    if ipam.get("subnet"):
        sets.append([ipam])
    sets += ipam.get("ranges") or ()
    if not sets:
        raise ValueError("it has no ranges")
    return [[_range(each) for each in ranges] for ranges in sets]


def _range(said: Mapping[str, Any]) -> Range:
    subnet = ip_network(said["subnet"])
    if subnet.num_addresses < 4:
        raise ValueError(f"{subnet} is too small")
    lowest, highest = subnet[1], subnet[-2]
    if subnet.version == 6:
        highest = subnet[-1]
    first = ip_address(said["rangeStart"]) if said.get("rangeStart") else lowest
    last = ip_address(said["rangeEnd"]) if said.get("rangeEnd") else highest
    gateway = ip_address(said["gateway"]) if said.get("gateway") else lowest
    for address in (first, last):
        if address not in subnet:
            raise ValueError(f"{address} is not in {subnet}")
    return Range(subnet, first, last, gateway)


def _wanted(call: Call) -> list[_Ip]:
    """Return the addresses that somebody asks for by name: CNI_ARGS' IP, or the capability `ips`."""
    arguments = dict(item.partition("=")[::2] for item in call.arguments.split(";"))
    texts = [arguments["IP"]] if arguments.get("IP") else []
    texts += (call.configuration.get("runtimeConfig") or {}).get("ips") or ()
    return [ip_address(text.partition("/")[0]) for text in texts]


def _dns(resolv_conf: str | None) -> dict[str, Any]:
    """Return what a resolv.conf says."""
    dns: dict[str, Any] = {}
    for line in Path(resolv_conf).read_text().splitlines() if resolv_conf else ():
        match line.split():
            case ["nameserver", server, *_]:
                dns.setdefault("nameservers", []).append(server)
            case ["domain", domain, *_]:
                dns["domain"] = domain
            case ["search", *domains]:
                dns.setdefault("search", []).extend(domains)
            case ["options", *options]:
                dns.setdefault("options", []).extend(options)
    return dns


class _Store:
    """The files of one network."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self._directory / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def __iter__(self) -> Iterator[tuple[_Ip, tuple[str, str]]]:
        """Return each address that is given away, and to whom."""
        for name in os.listdir(self._directory):
            try:
                address = ip_address(name)
            except ValueError:
                continue
            container, interface, *_ = *(self._directory / name).read_text().split(), "", ""
            yield address, (container, interface)

    def reserve(self, address: _Ip, who: tuple[str, str]) -> None:
        """Give away an address that nobody has."""
        fd = os.open(self._directory / str(address), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", newline="") as file:
            file.write("\r\n".join(who))

    def take_back(self, address: _Ip) -> None:
        """Take back an address."""
        (self._directory / str(address)).unlink(missing_ok=True)

    def release(self, container: str, interface: str) -> None:
        """Take back what an interface has."""
        for address, who in list(self):
            if who == (container, interface):
                self.take_back(address)

    def keep(self, valid: set[tuple[str, str]]) -> None:
        """Take back what others have than the valid ones."""
        for address, who in list(self):
            if who not in valid:
                self.take_back(address)

    def last(self, number: int) -> _Ip | None:
        """Return the address of a range set that was given away last."""
        try:
            return ip_address((self._directory / f"{_LAST}{number}").read_text().strip())
        except (FileNotFoundError, ValueError):
            return None

    def set_last(self, number: int, address: _Ip) -> None:
        (self._directory / f"{_LAST}{number}").write_text(str(address))
