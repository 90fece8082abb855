"""The commands `pyctr-shim` and `containerd-shim-pyctr-v1`: start, delete, -v, -info, zygote.

Arguments are Go's: one dash or two, `-flag value` or `-flag=value`. Imports come late, because `-v` and `delete`
are run often and in a hurry.
"""

import sys
from collections.abc import Sequence
from typing import Final

_USAGE: Final = """\
usage: containerd-shim-pyctr-v1 -namespace NS -address SOCKET -publish-binary PATH -id ID [-debug] start
       containerd-shim-pyctr-v1 -namespace NS -address SOCKET -id ID [-bundle PATH] delete
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
        return 0
    if flags.keys() & {"v", "version"}:
        sys.stdout.write(f"{sys.argv[0]}:\n  Version:  {_version()}\n")
        return 0
    if words == ["start"]:
        from pyctr_shim import sealed

        sealed.run_from_sealed_copy()
    from pyctr_shim import bootstrap

    if "info" in flags:
        sys.stdout.buffer.write(bootstrap.info())
        return 0
    parsed = bootstrap.Flags(
        namespace=flags.get("namespace", ""),
        address=flags.get("address", ""),
        publish_binary=flags.get("publish-binary", ""),
        id=flags.get("id", ""),
        bundle=flags.get("bundle", ""),
        debug="debug" in flags,
    )
    if words == ["start"]:
        sys.stdout.buffer.write(bootstrap.start(parsed, bootstrap.read_stdin()))
    elif words == ["delete"]:
        sys.stdout.buffer.write(bootstrap.delete(parsed))
    else:
        raise UsageError(f"unknown command {' '.join(words)!r}")
    sys.stdout.buffer.flush()
    return 0


def _version() -> str:
    from importlib.metadata import version

    return f"v{version('pyctr')}"


if __name__ == "__main__":
    sys.exit(main())
