"""Address translation for pods, in a table of our own.

    table inet pyctr_cni
      chain host_ports      what arrives at a host's port for a pod; for others' packets, and for the host's own
      chain prerouting, output     where those come from
      chain postrouting     pods' packets to elsewhere, and those whose answers would go astray

Each rule has a comment that says whose it is: `<network> <container>`; the table goes with the last of them.
libnftables does it, in one transaction, for the network namespace of the calling thread.
Source: libnftables(3), libnftables-json(5), nft(8).
"""

import ctypes
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final

_TABLE: Final = "inet pyctr_cni"
_LIBRARY: Final = "libnftables.so.1"
_OUTPUT_HANDLE, _OUTPUT_JSON = 1 << 3, 1 << 4
_MAX_COMMENT: Final = 128  # bytes, as nft has it
# -100 and 100 are where addresses are translated.
_BASE: Final = f"""
add table {_TABLE}
add chain {_TABLE} host_ports
add chain {_TABLE} prerouting {{ type nat hook prerouting priority -100; }}
add chain {_TABLE} output {{ type nat hook output priority -100; }}
add chain {_TABLE} postrouting {{ type nat hook postrouting priority 100; }}
add rule {_TABLE} prerouting fib daddr type local jump host_ports
add rule {_TABLE} output fib daddr type local jump host_ports
"""

_lock = threading.Lock()  # several at once would only find that the ruleset has changed under them


class NftablesError(OSError):
    """nftables refused; the text is its own."""


def is_there() -> bool:
    """Return whether libnftables is installed."""
    return _library() is not None


def owner(network: str, container: str) -> str:
    """Return what the comment of a container's rules says."""
    return f"{network} {container}"[:_MAX_COMMENT]


def add(rules: Mapping[str, Iterable[str]], comment: str) -> None:
    """Append rules to chains, each in nft's words without a comment. Raises NftablesError; nothing is added then."""
    commands = [
        f'add rule {_TABLE} {chain} {rule} comment "{comment}"\n' for chain, some in rules.items() for rule in some
    ]
    if not commands:
        return
    with _lock:
        # A list and what it is of cannot be asked for at once: libnftables 1.0.6 ends the process.
        if not _is_made():
            _run(_BASE)
        _run("".join(commands))


def remove(comment: str) -> None:
    """Remove the rules with that comment, of which there may be none. Raises NftablesError."""
    _remove_if(lambda found: found == comment)


def keep(network: str, containers: Iterable[str]) -> None:
    """Remove a network's rules that belong to none of `containers`. Raises NftablesError."""
    wanted = {owner(network, container) for container in containers}
    _remove_if(lambda found: found.startswith(f"{network} ") and found not in wanted)


def count(comment: str) -> int:
    """Return how many rules have that comment."""
    with _lock:
        return sum(rule.get("comment") == comment for rule in _rules())


def _remove_if(unwanted: Callable[[str], bool]) -> None:
    with _lock:
        owned = [rule for rule in _rules() if rule.get("comment")]
        found = [rule for rule in owned if unwanted(rule["comment"])]
        if found == owned != []:  # what is left would only cost each packet time
            _run(f"delete table {_TABLE}\n")
        elif found:
            _run("".join(f"delete rule {_TABLE} {rule['chain']} handle {rule['handle']}\n" for rule in found))


def _is_made() -> bool:
    family, name = _TABLE.split()
    tables = [one["table"] for one in _run("list tables\n") if "table" in one]
    return any((table["family"], table["name"]) == (family, name) for table in tables)


def _rules() -> list[dict[str, Any]]:
    return [one["rule"] for one in _run(f"list table {_TABLE}\n") if "rule" in one] if _is_made() else []


def _run(commands: str) -> list[dict[str, Any]]:
    """Run commands as one transaction and return what they list."""
    library = _library()
    if library is None:
        raise NftablesError(f"{_LIBRARY} is not installed")
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _OUTPUT_HANDLE | _OUTPUT_JSON)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode())
        if failed:
            raise NftablesError(
                f"nftables: {library.nft_ctx_get_error_buffer(context).decode(errors='replace').strip()}"
            )
        output = library.nft_ctx_get_output_buffer(context)
        return list(json.loads(output)["nftables"]) if output else []
    finally:
        library.nft_ctx_free(context)


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library
