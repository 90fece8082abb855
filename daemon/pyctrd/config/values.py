"""From what TOML has to the types that tables want."""

import builtins
import enum
import types
import typing
from collections import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what is wrong."""


def settings_of(section: type[Any] | Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return each key of a table with its type, its explanation, and what limits it."""
    hints = typing.get_type_hints(section if isinstance(section, type) else type(section), include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__) for name, hint in hints.items()}


def is_section(kind: type[Any]) -> bool:
    """Return whether `kind` is the type of a table."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def build(section: Any, table: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    """Return `section` with the values of `table` in place of its own.

    Raises ConfigError naming `source` and the key, which has `prefix` in front of it.
    """
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
            return build(default, value, source, key + ".")
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
