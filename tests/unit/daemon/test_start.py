"""What a daemon must not load before it answers: each module costs every start time."""

import subprocess
import sys

import pytest

# What clients do not ask for in the first moment, what only some calls need, and what no call needs at all.
_LATE = (
    *(f"pyctrd.{package}" for package in ("late", "content", "gc", "registry", "snapshots", "streams", "transfer")),
    *(f"pyctrd.rpc.{module}" for module in ("convert.records", "engine", "images", "introspection", "snapshots")),
    *(f"pyctr_wire.containerd.services.{service}" for service in ("content", "diff", "images", "leases", "snapshots")),
    *("aiohttp", "click", "isal", "pyroute2", "re2", "rich", "structlog", "zstandard"),
    *("email", "importlib.metadata", "importlib.resources", "multiprocessing", "tempfile", "tomllib", "zipfile"),
    *("google.protobuf.json_format", "google.protobuf.text_format"),
)
_START = """
import sys
import pyctrd.__main__, pyctrd.log, pyctrd.placement, pyctrd.supervisor, pyctrd.upgrade
print(*sys.modules)
"""


@pytest.fixture(scope="module", name="loaded")
def _loaded() -> set[str]:
    """The modules that a daemon loads before it answers."""
    program = [sys.executable, "-c", _START]
    return set(subprocess.run(program, check=True, capture_output=True, text=True).stdout.split())


def test_what_can_wait_is_not_loaded_before_the_daemon_answers(loaded: set[str]) -> None:
    assert "pyctrd.rpc.tasks" in loaded
    assert not loaded.intersection(_LATE)


def test_all_that_waits_exists() -> None:
    """A module that has been renamed would never be found among those loaded."""
    program = f"import importlib\nfor name in {_LATE!r}: importlib.import_module(name)"
    subprocess.run([sys.executable, "-c", program], check=True)
