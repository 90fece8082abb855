"""The commands `pyctr-shim` and `containerd-shim-pyctr-v1`: start, delete, -v, -info; and streams, of our daemon's.

Arguments are Go's: one dash or two, `-flag value` or `-flag=value`. Imports come late, because `-v` and `delete`
are run often and in a hurry.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyctr_shim import VERSION

_USAGE: Final = """\
usage: containerd-shim-pyctr-v1 -namespace NS -address SOCKET -publish-binary PATH -id ID [-debug] start
       containerd-shim-pyctr-v1 -namespace NS -address SOCKET -id ID [-bundle PATH] delete
       containerd-shim-pyctr-v1 -bundle PATH -socket PATH streams
       containerd-shim-pyctr-v1 -v | -info
"""
_WITH_VALUE: Final = frozenset({"namespace", "address", "publish-binary", "id", "bundle", "socket", "debug-socket"})
_SWITCHES: Final = frozenset({"debug", "v", "version", "info", "h", "help"})


class UsageError(Exception):
    """The command line makes no sense."""


def main() -> int:
    """Run the command line's command and return the exit status."""
    try:
        flags, words = parse(sys.argv[1:])
        return _run(flags, words)
    except UsageError as error:
        sys.stderr.write(f"{error}\n{_USAGE}")
        return 2
    except Exception as error:
        # The daemon shows this text to the person who asked for the container.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return flags and words, as Go's flag package reads them; raises UsageError."""
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        if name in _SWITCHES:
            flags[name] = value or "true"
        elif name in _WITH_VALUE:
            if not equals:
                if not rest:
                    raise UsageError(f"flag needs an argument: -{name}")
                value = rest.pop(0)
            flags[name] = value
        else:
            raise UsageError(f"flag provided but not defined: -{name}")
    return flags, rest


def _run(flags: dict[str, str], words: list[str]) -> int:
    if flags.keys() & {"h", "help"}:
        sys.stdout.write(_USAGE)
    elif flags.keys() & {"v", "version"}:
        sys.stdout.write(f"{sys.argv[0]}:\n  Version:  v{VERSION}\n")
    elif "info" in flags:
        from pyctr_shim import bootstrap

        _answer(bootstrap.info())
    elif words == ["start"]:
        _answer(_start(flags))
    elif words == ["delete"]:
        from pyctr_shim import burial

        _answer(burial.delete(Path(flags.get("bundle") or Path.cwd()), flags.get("id", "")))
    elif words == ["streams"] and flags.get("socket"):
        from pyctr_shim import beside

        beside.start(flags.get("bundle") or str(Path.cwd()), flags["socket"])
    else:
        raise UsageError(f"unknown command {' '.join(words)!r}")
    return 0


def _start(flags: dict[str, str]) -> bytes:
    from pyctr_shim import sealed

    sealed.run_from_sealed_copy()
    from pyctr_shim import bootstrap

    parsed = bootstrap.Flags(
        namespace=flags.get("namespace", ""),
        address=flags.get("address", ""),
        id=flags.get("id", ""),
        debug="debug" in flags,
    )
    return bootstrap.start(parsed, bootstrap.read_stdin())


def _answer(data: bytes) -> None:
    """Write the answer: all that may appear on standard output."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
