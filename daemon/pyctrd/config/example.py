"""The configuration as a file in which every key is explained: deploy/config.toml, `pyctrd config default`."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pyctrd.config.tables import Config
from pyctrd.config.values import is_section, settings_of

_CALLED: Final = {"credentials": "HOST"}  # tables of which there may be many, and what each is called after


def render(config: Config) -> str:
    """Return `config` as a TOML file in which every key is explained."""
    return "\n".join(_render(config, "")).strip() + "\n"


def _render(section: Any, prefix: str) -> Iterator[str]:
    tables = []
    for name, (kind, (explanation, *_)) in settings_of(section).items():
        value = getattr(section, name)
        comment = textwrap.wrap(explanation, 100, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        if isinstance(value, Mapping):
            tables += [*comment, *_commented_out(kind.__args__[1], f'{prefix}{name}."{_CALLED.get(name, "NAME")}"')]
        elif is_section(type(value)):
            tables += [*comment, f"[{prefix}{name}]", *_render(value, f"{prefix}{name}.")]
        else:
            yield from (*comment, f"{name} = {_toml(value)}", "")
    yield from tables


def _commented_out(section: type[Any], name: str) -> list[str]:
    """Return an example of a table of which there may be many, and by default are none."""
    lines = [f"[{name}]", *_render(section(), "")]
    return [line if not line or line.startswith("# ") else f"#{line}" for line in lines]


def _toml(value: Any) -> str:
    """Return a scalar or a list of texts as TOML, whose basic strings are JSON's."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
