"""Cold start: what containerd (and our daemon, where no zygote is at hand) runs as `containerd-shim-pyctr-v1`.

    start    parameters in by flags, environment and standard input; the address of a serving shim out
    -info    print a RuntimeInfo

Standard output is the answer and nothing else may be written to it.
Source: containerd's runtime v2 documentation; the answer's form depends on the daemon's release.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from google.protobuf.message import DecodeError

import pyctr_shim
from pyctr_shim import detached, placement
from pyctr_shim.identity import Identity, make_inheritance
from pyctr_shim.keeper import Common, Keeper, share
from pyctr_shim.loop import Loop
from pyctr_shim.oci import forks
from pyctr_shim.server import listen_at
from pyctr_shim.shim import Shim, prepare_process, wake
from pyctr_wire.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from pyctr_wire.containerd.types import introspection_pb2

_SOCKET_DIR: Final = "/run/containerd/s"
_GROUP_LABELS: Final = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_RUNTIME_NAME: Final = "io.containerd.pyctr.v1"
_FEATURES_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


class Flags(NamedTuple):
    """The command line's flags; Go's form, with one dash or two."""

    namespace: str
    address: str
    id: str
    debug: bool


class Parameters(NamedTuple):
    """Where the shim is to live, from whichever form the daemon sent."""

    id: str
    namespace: str
    grpc_address: str
    ttrpc_address: str
    socket_dir: str
    typed: bool
    """Whether the daemon speaks BootstrapParams (2.3 and later) and wants a BootstrapResult."""


def start(flags: Flags, stdin: bytes) -> bytes:
    """Make sure that a shim serves the container of the current directory, and return what to print.

    A shim of the same group that serves already is named instead of a new one. Raises OSError, BundleTaken.
    """
    parameters = read_parameters(flags, stdin)
    bundle = Path.cwd()
    group = group_of(bundle) or parameters.id
    address = socket_path(parameters, group)
    os.makedirs(parameters.socket_dir, mode=0o700, exist_ok=True)
    try:
        listener = listen_at(address)
    except FileExistsError:
        return answer(parameters, bundle, address)
    identity = Identity(
        namespace=parameters.namespace,
        id=parameters.id,
        bundle=str(bundle),
        socket=address,
        attach=f"{address}.attach",
        ttrpc_address=parameters.ttrpc_address,
        grpc_address=parameters.grpc_address,
        instance="",
        log_level="debug" if flags.debug else "info",
    )
    with listener:
        detached.start(lambda tell: _serve(identity, listener, tell), "the shim")
    return answer(parameters, bundle, address)


def _serve(identity: Identity, listener: Any, tell: detached.Tell) -> NoReturn:
    """Be the shim: in a session of its own, no descriptor of the daemon's kept, told when it serves."""

    def begin(common: Common) -> NoReturn:
        try:
            shim = Shim(Loop(common.epoll_fd), identity, inheritance.boot_id, common)
            shim.listen(listener)
        except Exception as error:
            tell(error)
            os._exit(1)
        tell(None)
        shim.run()
        os._exit(0)

    def go_on(common: Common) -> NoReturn:
        wake(common).run()
        os._exit(0)

    prepare_process()
    placement.leave_the_daemon()
    placement.become_the_next_victim()
    inheritance = make_inheritance()
    forks.fork_siblings()
    Keeper(share(), inheritance.signal_fd).run(begin, go_on)


def read_parameters(flags: Flags, stdin: bytes) -> Parameters:
    """Return the parameters: BootstrapParams where the daemon sends them, flags and environment otherwise.

    An older daemon sends the options as a bare Any, whose bytes may decode as BootstrapParams too; only a real one
    names the daemon's version.
    """
    params = bootstrap_pb2.BootstrapParams()
    try:
        params.MergeFromString(stdin)
    except DecodeError:
        params.Clear()
    if not params.containerd_version:
        grpc_address = flags.address or os.environ.get("GRPC_ADDRESS", "")
        ttrpc_address = os.environ.get("TTRPC_ADDRESS", f"{grpc_address}.ttrpc")
        return Parameters(flags.id, flags.namespace, grpc_address, ttrpc_address, _SOCKET_DIR, typed=False)
    return Parameters(
        id=params.instance_id or flags.id,
        namespace=params.namespace or flags.namespace,
        grpc_address=params.containerd_grpc_address or flags.address,
        ttrpc_address=params.containerd_ttrpc_address,
        socket_dir=params.socket_dir or _SOCKET_DIR,
        typed=True,
    )


def group_of(bundle: Path) -> str:
    """Return the id of the group whose containers share a shim, from the spec's annotations; empty for none."""
    try:
        annotations = json.loads((bundle / "config.json").read_bytes()).get("annotations") or {}
    except (OSError, ValueError):
        return ""
    return next((str(annotations[label]) for label in _GROUP_LABELS if annotations.get(label)), "")


def socket_path(parameters: Parameters, group: str) -> str:
    """Return containerd's socket path for a group."""
    name = os.path.normpath("/".join((parameters.grpc_address, parameters.namespace, group)))
    return f"{parameters.socket_dir}/{hashlib.sha256(name.encode()).hexdigest()}"


def answer(parameters: Parameters, bundle: Path, path: str) -> bytes:
    """Return what `start` prints, and leave the address in the bundle as older daemons want it.

    A bare address is understood by every daemon and means version 2; we serve 2 and 3.
    """
    address = f"unix://{path}"
    (bundle / "address").write_text(address)
    if parameters.typed:
        result = bootstrap_pb2.BootstrapResult(version=3, address=address, protocol="ttrpc")
        return result.SerializeToString()
    return address.encode()


def info() -> bytes:
    """Return a marshalled RuntimeInfo, with what the runtime can do."""
    from pyctr_shim.oci import features  # for this alone

    result = introspection_pb2.RuntimeInfo(name=_RUNTIME_NAME)
    result.version.version = pyctr_shim.VERSION
    result.features.type_url = _FEATURES_URL
    result.features.value = json.dumps(features.document()).encode()
    return result.SerializeToString()


def read_stdin() -> bytes:
    """Return standard input to its end; nothing if there is none or a person sits at it."""
    if sys.stdin is None or sys.stdin.isatty():
        return b""
    return sys.stdin.buffer.read()
