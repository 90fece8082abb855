"""The configuration: a TOML file becomes frozen values, checked once, before anything is built.

Each setting is declared here with its default and its explanation; config_example.py makes a commented
file of them.
"""

import builtins
import enum
import os
import re
import types
import typing
from collections import abc
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

from pyctr_wire.errors import ApiError
from pyctrd.core.addresses import Tcp, parse_address
from pyctrd.core.content import Sharing
from pyctrd.core.pod_addresses import Preference
from pyctrd.core.settings import Least
from pyctrd.core.snapshotter_settings import Snapshotters
from pyctrd.diff.limits import Limits
from pyctrd.rootless import paths

DEFAULT_PATH: Final = Path("/etc/pyctr/config.toml")

_LIMITS: Final = Limits()


# Snapshotters: what no other program's can be called.
BUILT_IN: Final = frozenset(
    {"overlayfs", "native", "btrfs", "erofs", "fuse-overlayfs", "blockfile", "devmapper", "aufs"}
)


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what is wrong."""


class LogLevel(enum.StrEnum):
    """The least important records that are written; containerd's further names mean the nearest of these."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @classmethod
    def _missing_(cls, value: object) -> "LogLevel | None":
        return {"trace": cls.DEBUG, "warn": cls.WARNING, "fatal": cls.ERROR, "panic": cls.ERROR}.get(str(value))


class LogFormat(enum.StrEnum):
    """How records are written."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class Log(NamedTuple):
    """The [log] table."""

    level: Annotated[LogLevel, "debug, info, warning or error. Read again on SIGHUP; `--log-level` wins over it."] = (
        LogLevel.INFO
    )
    format: Annotated[LogFormat, "json, console, or auto: console where standard error is a terminal."] = LogFormat.AUTO


class Grpc(NamedTuple):
    """The [grpc] table."""

    address: Annotated[
        str,
        'The socket that clients connect to; "" is pyctrd.sock in the state directory. `.ttrpc` is appended'
        " for the socket on which shims report. At most 90 bytes.",
    ] = ""
    addresses: Annotated[
        tuple[str, ...],
        "Where else clients can connect: paths of sockets, and tcp://HOST:PORT, for which the three files below are"
        " needed. `--address` can be given several times for these.",
    ] = ()
    tcp_tls_ca: Annotated[
        str,
        "A file with the authorities whose certificates clients on TCP must show, PEM. Whoever has one is as good as"
        " root. Changed files are used for new connections.",
    ] = ""
    tcp_tls_cert: Annotated[str, "A file with the certificates that are shown to clients on TCP, PEM."] = ""
    tcp_tls_key: Annotated[str, "The file with the certificate's private key, PEM."] = ""
    uid: Annotated[int, "Owner of the sockets.", Least(0)] = 0
    gid: Annotated[int, "Group of the sockets, whose members may use it: they are as good as root.", Least(0)] = 0
    connection_age: Annotated[
        float,
        "Seconds after which a client is asked to open a new connection; calls under way on the old one are"
        " not disturbed.",
        Least(1),
    ] = 600.0


class Metrics(NamedTuple):
    """The [metrics] table."""

    address: Annotated[
        str,
        'HOST:PORT at which Prometheus finds /v1/metrics, without TLS: of the loopback, best. "" is off, and costs'
        " nothing.",
    ] = ""


class Userns(NamedTuple):
    """The [userns] table."""

    remap: Annotated[
        str,
        "User namespaces for containers, whose root is then none of this machine's users: UID:SIZE gives them the ids"
        " from UID on, a NAME those that /etc/subuid and /etc/subgid grant to that user. A container can be kept out of"
        ' it by `pyctr run --userns host`. "" is none.',
    ] = ""


class Threads(NamedTuple):
    """The [threads] table."""

    metadata: Annotated[int, "Threads for short work: rows, directories of snapshots.", Least(1)] = 8
    bulk: Annotated[int, "Threads for long work: reading and writing content, unpacking, collecting.", Least(1)] = 16


class Events(NamedTuple):
    """The [events] table."""

    queue: Annotated[
        int, "Events that wait for one slow subscriber. When there are more, its stream is ended.", Least(1)
    ] = 16384


class Content(NamedTuple):
    """The [content] table."""

    sharing: Annotated[
        Sharing,
        "shared: a namespace that names the digest of another one's blob has it too, without fetching it."
        " isolated: it must bring the bytes, unless the other one has the label"
        " containerd.io/namespace.shareable=true. On disk there is one copy either way.",
    ] = Sharing.SHARED


class Unpack(NamedTuple):
    """The [unpack] table."""

    workers: Annotated[int, "Layers that are unpacked, or made, at once; each takes a process.", Least(1)] = 4
    max_bytes: Annotated[
        int, "The most bytes that a layer may have when it is unpacked, the holes of sparse files included.", Least(1)
    ] = _LIMITS.max_bytes
    max_ratio: Annotated[
        int, "How many times its compressed size a layer may be, unless it is smaller than free_bytes.", Least(1)
    ] = _LIMITS.max_ratio
    free_bytes: Annotated[int, "Bytes that any layer may have, whatever its compressed size.", Least(0)] = (
        _LIMITS.free_bytes
    )


class Checkpoint(NamedTuple):
    """The [checkpoint] table."""

    enabled: Annotated[
        bool,
        "Save running containers and restore them with CRIU, which must be installed. Off by default: to restore is"
        " to let CRIU do as root what a checkpoint says, and that may come from anybody.",
    ] = False


class Login(NamedTuple):
    """A [registry.credentials.HOST] table."""

    username: Annotated[str, "Who to be at the registry."] = ""
    secret: Annotated[str, "The password, or a token if there is no username."] = ""


class Cdi(NamedTuple):
    """The [cdi] table."""

    directories: Annotated[
        tuple[str, ...],
        "Where drivers say what a container with a device of theirs needs, in .json and .yaml files. If two directories"
        " describe a device, the later one counts. [] means no such devices.",
    ] = ("/etc/cdi", "/var/run/cdi")


class Registry(NamedTuple):
    """The [registry] table."""

    config_path: Annotated[
        tuple[str, ...],
        "Directories in which HOST/hosts.toml says who serves a registry: mirrors, certificates, headers. The first"
        " one that has the host counts.",
    ] = ("/etc/pyctr/certs.d", "/etc/containerd/certs.d")
    plain_http: Annotated[
        tuple[str, ...],
        "Registries (HOST or HOST:PORT) without TLS, beside those on this machine's loopback.",
    ] = ()
    docker_config: Annotated[
        str, "Where `pyctr login` and docker keep credentials, for hosts that have none below; with docker's helpers."
    ] = "/root/.docker/config.json"
    credentials: Annotated[
        Mapping[str, Login],
        "Credentials, sent only to the host that the table is called after.",
    ] = MappingProxyType({})


class Streaming(NamedTuple):
    """The [cri.streaming] table."""

    address: Annotated[
        str, "Where exec, attach and port-forward are served. Beyond the loopback, set a certificate."
    ] = "127.0.0.1"
    port: Annotated[int, "The TCP port; 0 takes a free one, which the kubelet is told with each stream.", Least(0)] = 0
    certificate: Annotated[str, 'A file with the certificates that are shown to clients, PEM; "" is without TLS.'] = ""
    key: Annotated[str, "The file with the certificate's private key, PEM."] = ""
    idle_timeout: Annotated[
        float, "Seconds after which a stream ends on which nothing is sent or received, not even a ping.", Least(1)
    ] = 14400.0
    creation_timeout: Annotated[
        float, "Seconds that a client has to open its streams once it is connected.", Least(1)
    ] = 30.0


class Cni(NamedTuple):
    """The [cri.cni] table."""

    conf_dir: Annotated[
        Path, "Where networks are described; the first usable .conf, .conflist or .json file counts, by name."
    ] = Path("/etc/cni/net.d")
    bin_dirs: Annotated[tuple[str, ...], "Where plugins' programs are looked for, one directory after the other."] = (
        "/opt/cni/bin",
        "/usr/lib/cni",
    )
    timeout: Annotated[float, "Seconds after which a plugin's program is killed.", Least(1)] = 60.0
    in_process: Annotated[
        tuple[str, ...],
        "Types of plugins that need no program, as the daemon does itself what they do, faster. Of those that it knows"
        " (bandwidth, bridge, firewall, host-local, loopback, portmap) one that is not named here is run as a program,"
        " and so is one whose configuration asks for what the daemon does not know.",
    ] = ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap")
    preference: Annotated[
        Preference, "Which address of a pod is its first: ipv4, ipv6, or cni: the plugins' first."
    ] = Preference.IPV4


class Cri(NamedTuple):
    """The [cri] table."""

    pinned_images: Annotated[
        tuple[str, ...], "Images that a kubelet which is short of space is told to leave alone, once they are pulled."
    ] = ()
    image_pull_progress_timeout: Annotated[
        float, "Seconds without a byte after which the pull of an image is given up.", Least(1)
    ] = 300.0
    cni: Annotated[Cni, "The network of pods."] = Cni()
    streaming: Annotated[Streaming, "The server of exec, attach and port-forward; it listens once it is needed."] = (
        Streaming()
    )


class Runtime(NamedTuple):
    """A [runtimes.NAME] table."""

    path: Annotated[
        str,
        'Its program: an absolute path, or a name that is looked up in $PATH; "" is NAME itself. "embedded" is our own'
        " runtime, for clients that ask for another one by this name.",
    ] = ""
    shim: Annotated[
        str,
        "The program of a shim of another make that drives it, a path or a name in $PATH, for clients of containerd's"
        ' API. "" is ours.',
    ] = ""
    root: Annotated[str, 'Where it keeps its state, a directory for each namespace; "" is in the bundle.'] = ""
    systemd_cgroup: Annotated[bool, "Let systemd make its cgroups."] = False
    no_pivot_root: Annotated[bool, "Do without pivot_root, which a host whose root is a ramfs has not."] = False
    no_new_keyring: Annotated[bool, "Give containers no session keyring of their own."] = False
    command_timeout: Annotated[
        float, "Seconds after which a command of it is killed, and what it has left is removed.", Least(1)
    ] = 30.0


class ProxyKind(enum.StrEnum):
    """What another program keeps for us."""

    SNAPSHOT = "snapshot"
    CONTENT = "content"


class ProxyPlugin(NamedTuple):
    """A [proxy_plugins.NAME] table."""

    type: Annotated[
        ProxyKind,
        "snapshot: a snapshotter, which clients ask for as NAME. content: it keeps the blobs, instead of the"
        " directory content; there can be one of these.",
    ] = ProxyKind.SNAPSHOT
    address: Annotated[str, "The unix socket that it serves."] = ""
    snapshotter: Annotated[str, 'What it calls its snapshotter, if it has several; "" is NAME.'] = ""
    namespace: Annotated[str, "The namespace there that is ours alone."] = "pyctr"
    capabilities: Annotated[
        tuple[str, ...], 'What clients are told that it can do: "remap-ids", "rebase", as its documentation says.'
    ] = ()
    timeout: Annotated[
        float, "Seconds that one of its calls may take; one that did not answer gets two the next time.", Least(1)
    ] = 60.0


class Config(NamedTuple):
    """Everything that can be set."""

    root: Annotated[Path, "What must survive a reboot: metadata, content, snapshots, logs, volumes."] = Path(
        "/var/lib/pyctr"
    )
    state: Annotated[Path, "What must not: sockets, bundles, exit records. Best on tmpfs."] = Path("/run/pyctr")
    log: Annotated[Log, "What is logged, on standard error."] = Log()
    grpc: Annotated[Grpc, "containerd's API and our own."] = Grpc()
    metrics: Annotated[Metrics, "Figures of containers and of the daemon, for Prometheus."] = Metrics()
    content: Annotated[Content, "Blobs of images."] = Content()
    unpack: Annotated[Unpack, "Layers of images, which come from strangers."] = Unpack()
    events: Annotated[Events, "Telling subscribers what happens."] = Events()
    checkpoint: Annotated[Checkpoint, "Containers that are saved while they run."] = Checkpoint()
    cdi: Annotated[Cdi, "Devices by the name that their drivers gave them: VENDOR/CLASS=NAME."] = Cdi()
    registry: Annotated[Registry, "Where images come from."] = Registry()
    cri: Annotated[Cri, "Kubernetes: what a kubelet asks for."] = Cri()
    runtimes: Annotated[
        Mapping[str, Runtime],
        "OCI runtimes beside our own, and shims, which containers ask for by name: `pyctr run --runtime NAME`. What is"
        " in $PATH needs no table here.",
    ] = MappingProxyType({})
    proxy_plugins: Annotated[
        Mapping[str, ProxyPlugin],
        "Stores that other programs keep, with containerd's API, such as snapshotters that fetch layers when they are"
        " read. A program that is gone fails its own calls and no others.",
    ] = MappingProxyType({})
    snapshotters: Annotated[Snapshotters, "Snapshotters that have to be told something; see docs/snapshotters.md."] = (
        Snapshotters()
    )
    userns: Annotated[Userns, "Who a container's root is on this machine."] = Userns()
    threads: Annotated[Threads, "Work that would block the event loop."] = Threads()

    @property
    def address(self) -> str:
        """The path of the socket that clients connect to."""
        return self.grpc.address.removeprefix("unix://").removeprefix("unix:") or str(self.state / "pyctrd.sock")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The sockets on this machine, that of `address` first."""
        named = (Path(self.address), *map(parse_address, self.grpc.addresses))
        return tuple(dict.fromkeys(address for address in named if isinstance(address, Path)))

    @property
    def ports(self) -> tuple[Tcp, ...]:
        """The addresses that other machines can reach."""
        return tuple(address for address in map(parse_address, self.grpc.addresses) if isinstance(address, Tcp))

    @property
    def metrics_address(self) -> Tcp | None:
        """Where metrics are served, if they are."""
        parsed = parse_address(f"tcp://{self.metrics.address}") if self.metrics.address else None
        assert not isinstance(parsed, Path)
        return parsed

    @property
    def ttrpc_address(self) -> str:
        """The path of the socket on which shims report."""
        return self.address + ".ttrpc"


def load(path: Path | None) -> Config:
    """Return the configuration in `path`; None is the default file if it is there, else the defaults.

    Raises ConfigError if the file cannot be read or used.
    """
    source = path or default_path()
    try:
        text = source.read_text()
    except FileNotFoundError as error:
        if path is None:
            return defaults()
        raise ConfigError(f"{source}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: {error}") from error
    return parse(text, str(source)) if text else defaults()


def default_path() -> Path:
    """Return where the configuration is if nobody says otherwise."""
    return paths.configuration() / "config.toml" if paths.is_rootless() else DEFAULT_PATH


def defaults() -> Config:
    """Return what holds where the configuration says nothing: root's defaults, or an ordinary user's own."""
    config = Config()
    if not paths.is_rootless():
        return config
    registry = config.registry._replace(
        config_path=(str(paths.configuration() / "certs.d"), *config.registry.config_path),
        docker_config=str(Path.home() / ".docker/config.json"),
    )
    return config._replace(root=paths.data(), state=paths.state(), registry=registry)


def parse(text: str, source: str) -> Config:
    """Return the configuration that `text` is; `source` names it in the ConfigError that is raised otherwise."""
    import tomllib  # not needed, and not loaded, where there is no file

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    config: Config = _build(defaults(), table, source, "")
    check(config, source)
    return config


def check(config: Config, source: str) -> None:
    """Raise ConfigError for values that are well-formed and cannot work."""
    for key, path in (("root", config.root), ("state", config.state)):
        if not path.is_absolute():
            raise ConfigError(f'{source}: {key} must be an absolute path, not "{path}"')
    if config.userns.remap:
        from pyctrd.remapping import maps_for  # not loaded where nobody wants it

        try:
            maps_for(config.userns.remap)
        except ApiError as error:
            raise ConfigError(f"{source}: userns.remap: {error}") from error
    _check_proxies(config.proxy_plugins, source)
    _check_addresses(config, source)
    for directory in config.cdi.directories:
        if not directory.startswith("/"):
            raise ConfigError(f'{source}: cdi.directories must be absolute paths, not "{directory}"')
    streaming = config.cri.streaming
    if streaming.port >= 1 << 16:
        raise ConfigError(f"{source}: cri.streaming.port must be below 65536, not {streaming.port}")
    if bool(streaming.certificate) != bool(streaming.key):
        raise ConfigError(f"{source}: cri.streaming.certificate and cri.streaming.key need each other")


def _check_addresses(config: Config, source: str) -> None:
    for key, addresses in (("address", (config.address,)), ("addresses", config.grpc.addresses)):
        for address in addresses:
            try:
                parsed = parse_address(address)
            except ValueError as error:
                raise ConfigError(f"{source}: grpc.{key} {error}") from error
            if key == "address" and isinstance(parsed, Tcp):
                raise ConfigError(f"{source}: grpc.address must be a path; {address} belongs in grpc.addresses")
    try:
        _ = config.metrics_address
    except ValueError as error:
        raise ConfigError(f"{source}: metrics.address must be HOST:PORT, not {config.metrics.address}") from error
    tls = config.grpc
    if config.ports and not (tls.tcp_tls_ca and tls.tcp_tls_cert and tls.tcp_tls_key):
        raise ConfigError(
            f"{source}: {config.ports[0]} is served with mutual TLS only: set grpc.tcp_tls_ca, grpc.tcp_tls_cert and"
            " grpc.tcp_tls_key"
        )


def _check_proxies(proxies: Mapping[str, ProxyPlugin], source: str) -> None:
    for name, proxy in proxies.items():
        if name in BUILT_IN:
            raise ConfigError(f"{source}: proxy_plugins.{name}: a snapshotter of that name is built in")
        if not os.path.isabs(proxy.address.removeprefix("unix://")):
            raise ConfigError(f'{source}: proxy_plugins.{name}.address must be an absolute path, not "{proxy.address}"')
        if not re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", name):
            raise ConfigError(f'{source}: proxy_plugins."{name}": its name must be letters and digits, joined by . _ -')
    if len(stores := [name for name, proxy in proxies.items() if proxy.type is ProxyKind.CONTENT]) > 1:
        raise ConfigError(f"{source}: proxy_plugins: only one can keep the content, not {', '.join(stores)}")


def settings_of(section: type[Any] | Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return each key of a table with its type, its explanation, and what limits it."""
    hints = typing.get_type_hints(section if isinstance(section, type) else type(section), include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__) for name, hint in hints.items()}


def is_section(kind: type[Any]) -> bool:
    """Return whether `kind` is the type of a table."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def _build(section: Any, table: Mapping[str, Any], source: str, prefix: str) -> Any:
    """Return `section` with the values of `table` in place of its own."""
    settings = settings_of(section)
    values = {}
    for key, value in table.items():
        if key not in settings:
            import difflib

            near = difflib.get_close_matches(key, settings, n=1, cutoff=0.0)[0]
            raise ConfigError(f'{source}: unknown key "{prefix}{key}"; the nearest that there is: "{prefix}{near}"')
        kind, (_, *limits) = settings[key]
        values[key] = _convert(kind, value, source, prefix + key, getattr(section, key))
        for limit in limits:
            if value < limit.value:
                raise ConfigError(f"{source}: {prefix}{key} must be at least {limit.value:g}, not {value}")
    return section._replace(**values)


def _convert(kind: Any, value: Any, source: str, key: str, default: Any) -> Any:
    """Return `value` as an instance of `kind`, a table's missing keys from `default`, or raise ConfigError."""
    match kind:
        case type() if is_section(kind) and isinstance(value, dict):
            return _build(default, value, source, key + ".")
        case type() if issubclass(kind, enum.StrEnum) and isinstance(value, str):
            if value in list(kind):
                return kind(value)
            raise ConfigError(f'{source}: {key} must be one of {", ".join(kind)}, not "{value}"')
        case type() if kind in (Path, str) and isinstance(value, str):
            return kind(value)
        case type() if kind is bool and isinstance(value, bool):
            return value
        case type() if kind in (int, float) and type(value) in (int, kind):
            return kind(value)
        case types.GenericAlias(__origin__=abc.Mapping) if isinstance(value, dict):
            section = kind.__args__[1]
            return {
                name: _convert(section, table, source, f'{key}."{name}"', section()) for name, table in value.items()
            }
        case types.GenericAlias(__origin__=builtins.tuple) if isinstance(value, list) and all(
            isinstance(one, str) for one in value
        ):
            return tuple(value)
    raise ConfigError(f"{source}: {key} must be {_name_of(kind)}, not {value!r}")


def _name_of(kind: Any) -> str:
    match kind:
        case types.GenericAlias(__origin__=builtins.tuple):
            return "a list of texts"
        case types.GenericAlias():
            return "a table of tables"
        case type() if is_section(kind):
            return "a table"
        case type() if issubclass(kind, str | Path):
            return "a text"
    return {bool: "true or false", int: "a whole number", float: "a number"}[kind]
