"""Which OCI runtime makes a container: what clients call it, and what is then told to its shim.

    io.containerd.runc.v2, io.containerd.pyctr.v1   our own runtime; or, with the option `binary_name`, that one
    /.../containerd-shim-pyctr-v1                   the same
    NAME                                            the [runtimes.NAME] of the configuration, or a program in $PATH
    /PATH                                           that program
    io.containerd.kata.v2, /.../containerd-shim-kata-v2   no runtime, but a shim of another make

All but the last are driven by our own shim. `binary_name` takes what stands in the two lines before that.
"""

import os
import re
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from pyctr_wire.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from pyctr_wire.containerd.types.runc.options import oci_pb2

# The names that clients send for "the usual runtime", all served by our own shim.
SHIMS: Final = frozenset({"io.containerd.runc.v2", "io.containerd.pyctr.v1"})
EMBEDDED: Final = "embedded"

_OPTIONS: Final = "containerd.runc.v1.Options"
_OUR_SHIM: Final = "containerd-shim-pyctr-v1"
_SHIM_PROGRAM: Final = re.compile(r"containerd-shim-.+")
_SHIM_NAME: Final = re.compile(r".+\..+\.v\d+")  # containerd's rule: the last two parts name the shim's program


class Settings(Protocol):
    """What the configuration says of one runtime."""

    @property
    def path(self) -> str:
        """Its program, "" for its name; `embedded` for ours."""

    @property
    def shim(self) -> str:
        """The program of the shim that drives it, "" for ours."""

    @property
    def root(self) -> str:
        """Where it keeps its state, "" for the bundle."""

    @property
    def systemd_cgroup(self) -> bool:
        """Whether systemd makes its cgroups."""

    @property
    def no_pivot_root(self) -> bool:
        """Whether it does without pivot_root."""

    @property
    def no_new_keyring(self) -> bool:
        """Whether containers share the caller's session keyring."""

    @property
    def command_timeout(self) -> float:
        """Seconds that one of its commands may take."""


class Resolved(NamedTuple):
    """What a shim is told; `program` is the absolute path of a runtime that is not ours, else "".

    `shim` is the absolute path of a shim that is not ours, else "".
    """

    options: AnyMessage | None
    program: str = ""
    shim: str = ""


class Runtimes:
    """The runtimes that there are."""

    def __init__(self, configured: Mapping[str, Settings]) -> None:
        """Know what the configuration names."""
        self._configured = configured

    def resolve(self, name: str, options: AnyMessage | None = None) -> Resolved:
        """Return what a shim is to be told for a container with this runtime and these options.

        Raises FailedPrecondition for a program that is not here, InvalidArgument for what is no name.
        """
        settings = self._configured.get(name)
        if settings is not None and settings.shim:
            return self._with_other_shim(name, settings, options)
        if name in SHIMS or (os.path.isabs(name) and os.path.basename(name) == _OUR_SHIM):
            return self._with_binary_name(options) if options is not None else Resolved(None)
        if settings is None:
            _check_name(name)
            if shim := _shim_program(name):
                return Resolved(options, shim=_find(name, shim))
        return self._driven(name, options)

    def _with_other_shim(self, name: str, settings: Settings, options: AnyMessage | None) -> Resolved:
        """Return what is said of a name that the configuration gives to a shim of another make."""
        if settings.path:
            raise FailedPrecondition(
                f'runtime "{name}": [runtimes.{name}] has both shim and path; which runtime such a shim drives, the'
                " client's options say"
            )
        return Resolved(options, shim=_find(name, settings.shim))

    def _with_binary_name(self, options: AnyMessage) -> Resolved:
        """Return what is said of the usual shim's runtime, whichever that is."""
        if options.type_url.rpartition("/")[2] != _OPTIONS:
            return Resolved(options)  # the shim says what it thinks of that
        name = _decoded(options).binary_name
        return self._driven(name, options) if name else Resolved(options)

    def _driven(self, name: str, options: AnyMessage | None) -> Resolved:
        """Return what is said of the runtime `name`: the client's options, completed by the configuration."""
        from pyctr_wire.pyctr import runtime_pb2  # seldom needed

        settings = self._configured.get(name)
        message = runtime_pb2.RuntimeOptions()
        if options is not None:
            if options.type_url.rpartition("/")[2] != _OPTIONS:
                raise InvalidArgument(f"runtime {name!r}: its options are {options.type_url}, not {_OPTIONS}")
            message.runc.CopyFrom(_decoded(options))
        program = _find(name, settings.path if settings is not None and settings.path else name)
        message.runc.binary_name = program
        if settings is not None:
            message.runc.root = message.runc.root or settings.root
            for switch in ("systemd_cgroup", "no_pivot_root", "no_new_keyring"):
                if getattr(settings, switch):
                    setattr(message.runc, switch, True)
            message.command_seconds = settings.command_timeout
        told = message if program else message.runc
        packed = AnyMessage(type_url=told.DESCRIPTOR.full_name, value=told.SerializeToString())
        return Resolved(packed, program)


def _decoded(options: AnyMessage) -> "oci_pb2.Options":
    from pyctr_wire.containerd.types.runc.options import oci_pb2

    try:
        return oci_pb2.Options.FromString(options.value)
    except DecodeError as error:
        raise InvalidArgument(f"runtime options do not decode as {_OPTIONS}") from error


def _check_name(name: str) -> None:
    """Raise what is to be said of a name that stands for nothing."""
    if ("/" in name and not os.path.isabs(name)) or not name:
        raise InvalidArgument(
            f"invalid runtime name {name}, correct runtime name should be either format like `io.containerd.runc.v2` or"
            " a full path to the binary"
        )


def _shim_program(name: str) -> str:
    """Return the program of the shim that a name or path stands for by containerd's rule, "" if it is none."""
    if _SHIM_PROGRAM.fullmatch(os.path.basename(name)):
        return name
    if "/" not in name and _SHIM_NAME.fullmatch(name):
        kind, version = name.rsplit(".", 2)[1:]
        return f"containerd-shim-{kind}-{version}"
    return ""


def _find(name: str, path: str) -> str:
    """Return the absolute path of a runtime's program, "" for the embedded one. Raises FailedPrecondition."""
    if path == EMBEDDED:
        return ""
    if os.path.isabs(path):
        if not os.path.isfile(path) or not os.access(path, os.X_OK):
            raise FailedPrecondition(f'runtime "{name}": {path} is no program that could be executed')
        return path
    found = shutil.which(path)
    if found is None:
        raise FailedPrecondition(
            f'runtime "{name}": no program {path} in $PATH; install it, or name it in [runtimes.{name}]'
        )
    return os.path.abspath(found)
