"""Address translation for pods, in a table of our own.

    table inet pyctr_cni
      chain host_ports      what arrives at a host's port for a pod; for others' packets, and for the host's own
      chain prerouting, output     where those come from
      chain postrouting     pods' packets to elsewhere, and those whose answers would go astray

Each rule has a comment that says whose it is: `<network> <container>`. libnftables does it, in one transaction, for
the network namespace of the calling thread. Source: libnftables(3), libnftables-json(5), nft(8).
"""

import ctypes
import json
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

_TABLE: Final = "inet pyctr_cni"
_LIBRARY: Final = "libnftables.so.1"
_OUTPUT_HANDLE, _OUTPUT_JSON = 1 << 3, 1 << 4
_MAX_COMMENT: Final = 128  # bytes, as nft has it
# Adding what is there changes nothing. -100 and 100 are where addresses are translated.
_BASE: Final = f"""
add table {_TABLE}
add chain {_TABLE} host_ports
add chain {_TABLE} prerouting {{ type nat hook prerouting priority -100; }}
add chain {_TABLE} output {{ type nat hook output priority -100; }}
add chain {_TABLE} postrouting {{ type nat hook postrouting priority 100; }}
"""
_ENTRIES: Final = f"""
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


def add(chain: str, rules: Iterable[str], comment: str) -> None:
    """Append rules to a chain, each in nft's words without a comment. Raises NftablesError; nothing is added then."""
    with _lock:
        _run(_BASE)
        commands = [f'add rule {_TABLE} {chain} {rule} comment "{comment}"\n' for rule in rules]
        # A list and what it is of cannot be asked for at once: libnftables 1.0.6 ends the process.
        if not _rules(_run(f"list chain {_TABLE} prerouting\n")):
            commands.insert(0, _ENTRIES)
        _run("".join(commands))


def remove(chain: str, comment: str) -> None:
    """Remove the rules with that comment from a chain, of which there may be none. Raises NftablesError."""
    with _lock:
        if found := [rule["handle"] for rule in _listed(chain) if rule.get("comment") == comment]:
            _run("".join(f"delete rule {_TABLE} {chain} handle {handle}\n" for handle in found))


def keep(chain: str, network: str, containers: Iterable[str]) -> None:
    """Remove a network's rules that belong to none of `containers`. Raises NftablesError."""
    wanted = {owner(network, container) for container in containers}
    for comment in {rule.get("comment", "") for rule in _listed(chain)} - wanted:
        if comment.startswith(f"{network} "):
            remove(chain, comment)


def count(chain: str, comment: str) -> int:
    """Return how many rules of a chain have that comment."""
    return sum(rule.get("comment") == comment for rule in _listed(chain))


def _listed(chain: str) -> list[dict[str, Any]]:
    tables = _run("list tables\n")
    family, name = _TABLE.split()
    if not any(one["table"]["family"] == family and one["table"]["name"] == name for one in tables if "table" in one):
        return []
    return _rules(_run(f"list chain {_TABLE} {chain}\n"))


def _rules(listed: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["rule"] for one in listed if "rule" in one]


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
