"""The words of `run` and `create`, turned into what the daemon is asked for. No I/O but named files.

No pathlib here: to import it takes as long as everything else that this module does.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import click

from pyctr import arguments
from pyctr_wire.containerd.types.mount_pb2 import Mount
from pyctr_wire.pyctr.engine_pb2 import RunOptions

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([bkmgtp]?)(?:i?b)?", re.IGNORECASE)
_UNITS: Final = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_PROPAGATIONS: Final = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
# SELinux labels for a source. It does not confine what `run` makes, so whatever they are will do.
_RELABELLING: Final = frozenset({"z", "Z"})
_MAX_FILE: Final = 1 << 20
_DOCKER_MIN_MEMORY: Final = 6 << 20  # what a process needs to start at all; docker's limit
_DOCKER_MIN_CPUS: Final = 0.01
MOST: Final = (1 << 63) - 1  # what a number may be for the daemon


def parse_size(option: str, text: str) -> int:
    """Return the bytes in "512m", "1.5g", "65536". Raises click.BadParameter, which names the option."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{option}: {text!r} is not a size such as 512m or 1g")
    value = float(match.group(1)) * (1 << _UNITS[match.group(2).lower()])
    if value > MOST:
        raise click.BadParameter(f"{option}: {text} is more than there can be")
    return int(value)


def _memory(text: str) -> int:
    """Return a limit in bytes, 0 for none."""
    value = parse_size("--memory", text)
    if 0 < value < _DOCKER_MIN_MEMORY:
        raise click.BadParameter(f"--memory {text}: the least is 6m")
    return value


def _nano_cpus(cpus: float) -> int:
    """Return a limit in billionths of a CPU, 0 for none."""
    if cpus != 0 and not _DOCKER_MIN_CPUS <= cpus <= MOST / 1e9:  # nor is NaN
        raise click.BadParameter(f"--cpus {cpus:g}: give a number from {_DOCKER_MIN_CPUS} on")
    return round(cpus * 1e9)


def _pids_limit(number: int) -> int:
    """Return a number of processes, 0 for no limit."""
    if number > MOST:
        raise click.BadParameter(f"--pids-limit {number} is more than there can be")
    return max(0, number)


def parse_pairs(option: str, entries: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE entries as a map; a bare NAME has the value "". Raises click.BadParameter."""
    pairs = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name:
            raise click.BadParameter(f"{option} {entry!r}: a name is missing before '='")
        pairs[name] = value
    return pairs


def _settings(option: str, entries: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE entries as a map. Raises click.BadParameter for one without a value."""
    entries = list(entries)
    for entry in entries:
        if "=" not in entry:
            raise click.BadParameter(f"{option} {entry!r}: give NAME=VALUE")
    return parse_pairs(option, entries)


def _read_lines(name: str, given: str) -> list[str]:
    """Return the lines of a small text file; `given` is how the user named it. Raises click.BadParameter."""
    try:
        with open(name, encoding="utf-8-sig") as file:
            text = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise click.BadParameter(f"{given}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"{given}: it is not a text file") from None
    if len(text) > _MAX_FILE:
        raise click.BadParameter(f"{given}: larger than {_MAX_FILE} bytes")
    return [line.removesuffix("\r") for line in text.split("\n")]  # and not where Python sees ends of lines too


def _variables(name: str) -> list[str]:
    """Return the entries of a file with one on each line. What is behind a "=" stays as it is."""
    lines = [line.lstrip() if "=" in line else line.strip() for line in _read_lines(name, f"--env-file {name}")]
    entries = [line for line in lines if line and not line.startswith("#")]
    for entry in entries:
        variable = entry.partition("=")[0]
        if not variable or variable.split() != [variable]:
            raise click.BadParameter(f"--env-file {name}: {entry!r} is not NAME=VALUE")
    return entries


def environment(entries: Iterable[str], files: Iterable[str], ours: Mapping[str, str]) -> list[str]:
    """Return NAME=VALUE entries, files first; a bare NAME takes its value from `ours` if it is there."""
    result = []
    for entry in [line for name in files for line in _variables(name)] + list(entries):
        name, separator, _ = entry.partition("=")
        if not name or "\0" in entry:
            raise click.BadParameter(f"environment entry {entry!r} is not NAME=VALUE")
        if separator:
            result.append(entry)
        elif name in ours:
            result.append(f"{name}={ours[name]}")
    return result


def parse_volume(text: str) -> Mount:
    """Return the mount that `-v [SOURCE:]TARGET[:OPTIONS]` asks for: SOURCE is a path, or the name of a volume.

    Without SOURCE it is a new volume. Raises click.BadParameter.
    """
    parts = text.split(":")
    if len(parts) == 1 and text:
        return volume("", _absolute(text, text), "rw")
    if not 2 <= len(parts) <= 3 or not parts[0] or not parts[1]:
        raise click.BadParameter(f"-v {text}: give HOST_PATH:PATH[:ro], VOLUME:PATH[:ro], or a new volume's PATH alone")
    source, target = parts[0], parts[1]
    named = not source.startswith(("/", ".", "~"))
    access, propagation, copies = "rw", "rprivate", True
    for option in filter(None, parts[2].split(",") if len(parts) == 3 else []):
        if option in ("ro", "rw"):
            access = option
        elif option in _RELABELLING:
            pass
        elif option in _PROPAGATIONS and not named:
            propagation = option
        elif option == "nocopy" and named:
            copies = False
        else:
            known = "ro, rw and nocopy" if named else f"ro, rw, {', '.join(sorted(_PROPAGATIONS))}"
            what = f"the volume {source}" if named else "a path"
            raise click.BadParameter(f"-v {text}: option {option!r} is not one for {what}: {known} are")
    if named:
        return volume(source, _absolute(text, target), access, copies=copies)
    return bind(os.path.abspath(os.path.expanduser(source)), _absolute(text, target), access, propagation)


def _absolute(text: str, target: str) -> str:
    if not target.startswith("/"):
        raise click.BadParameter(f"{text}: the path in the container, {target!r}, must be absolute")
    return target


def bind(source: str, target: str, access: str, propagation: str) -> Mount:
    """Return a bind mount of a host path."""
    return Mount(type="bind", source=source, target=target, options=["rbind", propagation, access])


def volume(name: str, target: str, access: str, *, copies: bool = True) -> Mount:
    """Return a volume, a new one for ""; an empty one is filled with what the image has there, unless not `copies`."""
    return Mount(
        type="volume", source=name, target=target, options=["rprivate", access, *([] if copies else ["nocopy"])]
    )


def parse_tmpfs(text: str) -> Mount:
    """Return the mount that `--tmpfs TARGET[:OPTIONS]` asks for."""
    target, _, options = text.partition(":")
    return tmpfs(_absolute(text, target), [option for option in options.split(",") if option])


def tmpfs(target: str, options: list[str]) -> Mount:
    """Return a tmpfs; what `options` does not say is as docker's."""
    chosen = {option.removeprefix("no") for option in options}
    defaults = [option for option in ("nosuid", "nodev", "noexec") if option.removeprefix("no") not in chosen]
    return Mount(type="tmpfs", source="tmpfs", target=target, options=defaults + options)


_ALIASES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_FIELDS: Final = {
    "bind": frozenset({"type", "source", "target", "readonly", "bind-propagation"}),
    "tmpfs": frozenset({"type", "target", "tmpfs-size", "tmpfs-mode", "readonly"}),
    "volume": frozenset({"type", "source", "target", "readonly", "volume-nocopy"}),
}


def parse_mount(text: str) -> Mount:
    """Return the mount that `--mount type=…,source=…,target=…` asks for. Raises click.BadParameter."""
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, separator, value = part.strip().partition("=")
        key = _ALIASES.get(key.lower(), key.lower())
        fields[key] = value if separator else "true"
    kind = fields.get("type", "volume")
    if kind not in _FIELDS:
        raise click.BadParameter(f"--mount {text}: type {kind} is not there yet; bind, tmpfs and volume are")
    unknown = fields.keys() - _FIELDS[kind]
    if unknown:
        raise click.BadParameter(f"--mount {text}: a {kind} mount has no field {', '.join(sorted(unknown))}")
    if not fields.get("target"):
        raise click.BadParameter(f"--mount {text}: target is missing")
    target = _absolute(text, fields["target"])
    access = "ro" if _truth(text, "readonly", fields) else "rw"
    if kind == "tmpfs":
        options = [f"size={parse_size('tmpfs-size', fields['tmpfs-size'])}"] if "tmpfs-size" in fields else []
        options += [f"mode={fields['tmpfs-mode']}"] if "tmpfs-mode" in fields else []
        return tmpfs(target, [*options, *(["ro"] if access == "ro" else [])])
    if kind == "volume":
        source = fields.get("source", "")
        if source.startswith(("/", ".", "~")):
            raise click.BadParameter(f"--mount {text}: {source!r} is a path: say type=bind, or give a volume's name")
        return volume(source, target, access, copies=not _truth(text, "volume-nocopy", fields))
    propagation = fields.get("bind-propagation", "rprivate")
    if propagation not in _PROPAGATIONS:
        raise click.BadParameter(f"--mount {text}: bind-propagation {propagation!r} is not known")
    source = fields.get("source", "")
    if not os.path.isabs(source) or not os.path.exists(source):
        raise click.BadParameter(f"--mount {text}: the source {source!r} is not an existing absolute path")
    return bind(source, target, access, propagation)


def _truth(text: str, name: str, fields: Mapping[str, str]) -> bool:
    """Return a field's truth, False if it is not there. Raises click.BadParameter for a word that is neither."""
    word = fields.get(name, "false")
    value = arguments.truth(word)
    if value is None:
        raise click.BadParameter(f"--mount {text}: {name} is true or false, not {word!r}")
    return value


def _security_option(text: str) -> str:
    """Return a security option; a seccomp profile's file is read here, where the user's paths mean something."""
    name, separator, value = text.partition("=")
    if name == "seccomp" and separator and value not in ("unconfined", "builtin"):
        return "seccomp=" + "\n".join(_read_lines(value, f"--security-opt {text}"))
    return text


def to_options(image_args: Iterable[str], given: Mapping[str, Any], ours: Mapping[str, str]) -> RunOptions:
    """Return the daemon's options for what the command line said. Raises click.BadParameter."""
    volumes = [parse_volume(text) for text in given["volume"]]
    mounts = [
        *(parse_mount(text) for text in given["mount"]),
        *volumes,
        *(parse_tmpfs(text) for text in given["tmpfs"]),
    ]
    options = RunOptions(
        args=image_args,
        env=environment(given["env"], given["env_file"], ours),
        working_dir=given["workdir"] or "",
        user=given["user"] or "",
        additional_groups=given["group_add"],
        terminal=given["tty"],
        interactive=given["interactive"],
        hostname=given["hostname"] or "",
        privileged=given["privileged"],
        init=given["init"],
        read_only=given["read_only"],
        mounts=mounts,
        devices=given["device"],
        capabilities_add=given["cap_add"],
        capabilities_drop=given["cap_drop"],
        security_options=[_security_option(text) for text in given["security_opt"]],
        sysctls=_settings("--sysctl", given["sysctl"]),
        ulimits=given["ulimit"],
        memory=_memory(given["memory"]) if given["memory"] else 0,
        nano_cpus=_nano_cpus(given["cpus"] or 0.0),
        pids_limit=_pids_limit(given["pids_limit"] or 0),
        network=given["network"] or "",
        stop_signal=given["stop_signal"] or "",
        labels=parse_pairs("--label", given["label"]),
        log_driver=given["log_driver"] or "",
        log_options=_settings("--log-opt", given["log_opt"]),
        auto_remove=given["rm"],
        userns=given["userns"],
        restart_policy=given["restart"],
    )
    if given["entrypoint"] is not None:
        options.entrypoint.append(given["entrypoint"])
    return options


@contextlib.contextmanager
def missing_sources(options: RunOptions, volumes: Iterable[str]) -> Iterator[None]:
    """Make the host directories that `-v` names and that are not there, as docker does; a failure takes them away.

    Raises click.BadParameter.
    """
    sources = {parse_volume(text).source for text in volumes}
    made: list[str] = []
    try:
        for mount in options.mounts:
            if mount.type == "bind" and mount.source in sources and not os.path.lexists(mount.source):
                _make(mount.source, made)
        yield
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # somebody uses it by now
                os.rmdir(directory)
        raise


def _make(source: str, made: list[str]) -> None:
    """Make a directory and those above it, each noted in `made`. Raises click.BadParameter."""
    above = os.path.dirname(source)
    if not os.path.lexists(above):
        _make(above, made)
    try:
        os.mkdir(source)
    except FileExistsError:  # somebody else was faster
        return
    except OSError as error:
        raise click.BadParameter(f"-v {source}: {error.strerror}") from None
    made.append(source)
