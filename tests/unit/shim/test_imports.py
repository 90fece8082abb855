"""What a shim must not load: each module costs every container memory, or brings threads."""

import subprocess
import sys

import pytest

_FORBIDDEN = ("grpc", "asyncio", "sqlite3", "pyctrd", "pyctr", "pyctr_wire.cri", "aiohttp", "structlog", "pyroute2")


# What saves and restores: for the child that does it, and nobody else.
_FOR_CHECKPOINTS = ("pyctr_shim.oci.checkpoint", "pyctr_wire.criu")


@pytest.mark.parametrize("module", ["pyctr_shim.zygote", "pyctr_shim.spares", "pyctr_shim.__main__"])
def test_a_shim_loads_nothing_for_checkpoints(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not [name for name in loaded if name.startswith(_FOR_CHECKPOINTS)]


@pytest.mark.parametrize(
    "module",
    [
        "pyctr_shim.zygote",
        "pyctr_shim.spares",
        "pyctr_shim.__main__",
        "pyctr_shim.oci.__main__",
        "pyctr_shim.oci.arguments",
    ],
)
def test_the_shim_stays_small(module: str) -> None:
    """Neither its zygote nor its cold start loads what belongs to the daemon or the command line."""
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert module in loaded
    assert not [name for name in _FORBIDDEN if name in loaded]


def test_a_command_that_looks_at_a_container_loads_neither_protobuf_nor_what_makes_one() -> None:
    program = "import sys, pyctr_shim.oci.arguments; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert "pyctr_shim.oci.runtime" in loaded
    assert not {"google.protobuf", "pyctr_shim.oci.init", "pyctr_shim.oci.exec", "pyctr_shim.oci.counters"} & {*loaded}
