"""What can be set: a class for each table, with the default and the explanation of each key."""

import enum
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple

from pyctrd.core.addresses import Tcp, parse_address
from pyctrd.core.content import Sharing
from pyctrd.core.pod_addresses import Preference
from pyctrd.core.settings import Least
from pyctrd.core.snapshotter_settings import Snapshotters
from pyctrd.diff.limits import Limits

_LIMITS: Final = Limits()


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
        "Credentials, sent only to the host that the table is called after. They come before what a client has.",
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
        "The program of a shim of another make that drives it, a path or a name in $PATH, for pods and for clients of"
        ' containerd\'s API. "" is ours.',
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
