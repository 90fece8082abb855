"""The configuration: a TOML file becomes frozen values, checked once, before anything is built.

Each setting is declared here with its default and its explanation; deploy/config.toml is what
`render` makes of them, and `pyctrd config default` prints it.
"""

import difflib
import enum
import json
import textwrap
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

DEFAULT_PATH: Final = Path("/etc/pyctr/config.toml")

# Below sun_path's 108 bytes, less what we append to the address for sockets of our own.
MAX_ADDRESS_BYTES: Final = 90


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what is wrong."""


class LogLevel(enum.StrEnum):
    """The least important records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.StrEnum):
    """How records are written."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


def _setting(default: Any, explanation: str, *, least: float | None = None) -> Any:
    """Return a dataclass field with what `render` and the checks need to know."""
    return field(default=default, metadata={"explanation": explanation, "least": least})


def _section(section: type, explanation: str) -> Any:
    return field(default_factory=section, metadata={"explanation": explanation})


@dataclass(frozen=True, slots=True)
class Log:
    """The [log] table."""

    level: LogLevel = _setting(
        LogLevel.INFO, "debug, info, warning or error. Read again on SIGHUP; `--log-level` wins over it."
    )
    format: LogFormat = _setting(LogFormat.AUTO, "json, console, or auto: console where standard error is a terminal.")


@dataclass(frozen=True, slots=True)
class Grpc:
    """The [grpc] table."""

    address: str = _setting(
        "",
        'The socket that clients connect to; "" is pyctrd.sock in the state directory. `.ttrpc` is'
        " appended for the socket on which shims report. At most 90 bytes.",
    )
    uid: int = _setting(0, "Owner of the socket.", least=0)
    gid: int = _setting(0, "Group of the socket, whose members may use it: they are as good as root.", least=0)
    connection_age: float = _setting(
        600.0,
        "Seconds after which a client is asked to open a new connection; calls under way on the old"
        " one are not disturbed.",
        least=1,
    )


@dataclass(frozen=True, slots=True)
class Threads:
    """The [threads] table."""

    metadata: int = _setting(8, "Threads for short work: rows, directories of snapshots.", least=1)
    bulk: int = _setting(16, "Threads for long work: reading and writing content, unpacking, collecting.", least=1)


@dataclass(frozen=True, slots=True)
class Events:
    """The [events] table."""

    queue: int = _setting(
        16384, "Events that wait for one slow subscriber. When there are more, its stream is ended.", least=1
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set."""

    root: Path = _setting(Path("/var/lib/pyctr"), "What must survive a reboot: metadata, content, snapshots, logs.")
    state: Path = _setting(Path("/run/pyctr"), "What must not: sockets, bundles, exit records. Best on tmpfs.")
    log: Log = _section(Log, "What is logged, on standard error.")
    grpc: Grpc = _section(Grpc, "containerd's API and our own.")
    events: Events = _section(Events, "Telling subscribers what happens.")
    threads: Threads = _section(Threads, "Work that would block the event loop.")

    @property
    def address(self) -> str:
        """The path of the socket that clients connect to."""
        return self.grpc.address.removeprefix("unix://") or str(self.state / "pyctrd.sock")

    @property
    def ttrpc_address(self) -> str:
        """The path of the socket on which shims report."""
        return self.address + ".ttrpc"


def load(path: Path | None) -> Config:
    """Return the configuration in `path`; None is the default file if it is there, else the defaults.

    Raises ConfigError if the file cannot be read or used.
    """
    source = path or DEFAULT_PATH
    try:
        text = source.read_text()
    except FileNotFoundError as error:
        if path is None:
            return Config()
        raise ConfigError(f"{source}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: {error}") from error
    return parse(text, str(source))


def parse(text: str, source: str) -> Config:
    """Return the configuration that `text` is; `source` names it in the ConfigError that is raised otherwise."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error
    config = _build(Config, table, source, "")
    check(config, source)
    return config


def check(config: Config, source: str) -> None:
    """Raise ConfigError for values that are well-formed and cannot work."""
    for key, path in (("root", config.root), ("state", config.state), ("grpc.address", Path(config.address))):
        if not path.is_absolute():
            raise ConfigError(f'{source}: {key} must be an absolute path, not "{path}"')
    if len(config.address.encode()) > MAX_ADDRESS_BYTES:
        raise ConfigError(f'{source}: grpc.address "{config.address}" is longer than {MAX_ADDRESS_BYTES} bytes')


def _build(section: type[Any], table: Mapping[str, Any], source: str, prefix: str) -> Any:
    """Return an instance of the dataclass `section` with the values of `table`."""
    hints = typing.get_type_hints(section)
    known = {item.name: item for item in fields(section)}
    values = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f'{source}: unknown key "{prefix}{key}"; the nearest that there is: "{prefix}{near}"')
        values[key] = _convert(hints[key], known[key], value, source, prefix + key)
    return section(**values)


def _convert(hint: Any, item: "Field[Any]", value: Any, source: str, key: str) -> Any:
    """Return `value` as the type `hint`, or raise ConfigError."""
    match hint:
        case type() if is_dataclass(hint) and isinstance(value, dict):
            return _build(hint, value, source, key + ".")
        case type() if issubclass(hint, enum.StrEnum) and isinstance(value, str):
            if value in list(hint):
                return hint(value)
            raise ConfigError(f'{source}: {key} must be one of {", ".join(hint)}, not "{value}"')
        case type() if hint in (Path, str) and isinstance(value, str):
            return hint(value)
        case type() if hint is bool and isinstance(value, bool):
            return value
        case type() if hint in (int, float) and type(value) in (int, hint):
            least = item.metadata["least"]
            if least is not None and value < least:
                raise ConfigError(f"{source}: {key} must be at least {least:g}, not {value}")
            return hint(value)
        case types.GenericAlias() if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
    wanted = _TYPE_NAMES.get(hint, "a list of texts" if isinstance(hint, types.GenericAlias) else "a table")
    raise ConfigError(f"{source}: {key} must be {wanted}, not {value!r}")


_TYPE_NAMES: Final[Mapping[Any, str]] = {
    LogLevel: "a text",
    LogFormat: "a text",
    Path: "a path",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def render(config: Config) -> str:
    """Return `config` as a TOML file in which every key is explained."""
    return "\n".join(_render(config, "")).strip() + "\n"


def _render(section: Any, prefix: str) -> Iterator[str]:
    tables = []
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            tables.append((item, value))
            continue
        yield from _comment(item)
        yield f"{item.name} = {_toml(value)}"
        yield ""
    for item, table in tables:
        yield from _comment(item)
        yield f"[{prefix}{item.name}]"
        yield from _render(table, f"{prefix}{item.name}.")


def _comment(item: "Field[Any]") -> list[str]:
    return textwrap.wrap(
        item.metadata["explanation"], 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _toml(value: Any) -> str:
    """Return a scalar or a list of texts as TOML, whose basic strings are JSON's."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
