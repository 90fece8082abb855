"""Rules in iptables' own tables, where others have theirs: what they forbid can be allowed only there.

iptables' programs write them, as only these know how this machine's are kept: once to look and once to change, in one
transaction. Source: iptables-save(8), iptables-restore(8), iptables(8).
"""

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyctrd.network import programs

_SECONDS: Final = 30.0
_MOST: Final = 64 << 20  # bytes of a table
_FAMILIES: Final = {4: "iptables", 6: "ip6tables"}
_TRIES: Final = 5

_lock = threading.Lock()


class IptablesError(OSError):
    """A program of iptables failed; the text is its own."""


def is_there(version: int) -> bool:
    """Return whether the programs for IPv4 or IPv6 are installed."""
    return all(shutil.which(f"{_FAMILIES[version]}-{verb}") for verb in ("save", "restore"))


def rules(version: int) -> set[str]:
    """Return the chains and rules of the table `filter`, each as the program writes it. Raises IptablesError."""
    return set(_run(version, "save", "-t", "filter").decode(errors="replace").splitlines())


def add(version: int, chains: Sequence[str], first: Sequence[str], last: Sequence[str]) -> None:
    """Add what is missing: `chains`, and rules ("CHAIN …") as the `first` or `last` ones. Raises IptablesError."""

    def missing(present: set[str]) -> list[str]:
        names = {line[1:].split(" ", 1)[0] for line in present if line.startswith(":")}
        lines = [f"-N {chain}" for chain in chains if chain not in names]
        lines += [f"-I {rule}" for rule in first if f"-A {rule}" not in present]
        return lines + [f"-A {rule}" for rule in last if f"-A {rule}" not in present]

    with _lock:
        for left in reversed(range(_TRIES)):
            lines = missing(rules(version))
            if not lines:
                return
            try:
                _restore(version, lines)
            except IptablesError:  # somebody else was faster with the same chain
                if not left:
                    raise
            else:
                return


def remove(version: int, unwanted: Sequence[str]) -> None:
    """Remove those of the rules ("CHAIN …") that are there. Raises IptablesError."""
    with _lock:
        present = rules(version)
        lines = [f"-D {rule}" for rule in unwanted if f"-A {rule}" in present]
        if lines:
            _restore(version, lines)


def _restore(version: int, lines: Sequence[str]) -> None:
    text = "\n".join(("*filter", *lines, "COMMIT", ""))
    _run(version, "restore", "--noflush", "--wait", str(int(_SECONDS)), data=text.encode())


def _run(version: int, verb: str, *arguments: str, data: bytes = b"") -> bytes:
    name = f"{_FAMILIES[version]}-{verb}"
    program = shutil.which(name)
    if program is None:
        raise IptablesError(f"{name} is not installed")
    environment = {"PATH": os.environ.get("PATH", os.defpath)}
    try:
        ended = programs.run(Path(program), environment, data, _SECONDS, arguments=arguments, most=_MOST)
    except programs.ProgramError as error:
        raise IptablesError(str(error)) from error
    if ended.status:
        raise IptablesError(f"{name}: {ended.errors.decode(errors='replace').strip() or ended.status}")
    return ended.output
