"""Generate the protobuf modules and the cffi tables in place.

Run as `python proto/generate.py` in a checkout; the package build calls `main` through
`hatch_hook.py`. Nothing that this writes is committed.
"""

import importlib.util
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
ABI_BUILD = ROOT / "shim" / "pyctr_sys" / "_build.py"


def _include_roots() -> list[Path]:
    """Return where imports of .proto files are looked up: ours, protoc's own and google.rpc's."""
    found = importlib.util.find_spec("google.rpc")
    if found is None or not found.submodule_search_locations:
        sys.exit("generate: install googleapis-common-protos (it has google/rpc/status.proto)")
    googleapis = Path(next(iter(found.submodule_search_locations))).parent.parent
    return [PROTO, Path(grpc_tools.__file__).parent / "_proto", googleapis]


def generate_protobuf() -> None:
    """Compile every .proto file below proto/ into modules beside it."""
    sources = sorted(PROTO.rglob("*.proto"))
    with_services = [path for path in sources if "\nservice " in path.read_text()]
    includes = [f"-I{root}" for root in _include_roots()]
    runs = [
        (sources, [f"--python_out={PROTO}", f"--pyi_out={PROTO}"]),
        (with_services, [f"--grpc_python_out={PROTO}"]),
    ]
    for files, outputs in runs:
        names = [str(path.relative_to(PROTO)) for path in files]
        if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
            sys.exit("generate: the .proto files do not compile")


def generate_abi() -> None:
    """Compile the cffi declarations of pyctr_sys into `_abi.py`."""
    spec = importlib.util.spec_from_file_location("pyctr_sys_build", ABI_BUILD)
    if spec is None or spec.loader is None:
        sys.exit(f"generate: {ABI_BUILD} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ffi.emit_python_code(str(ABI_BUILD.with_name("_abi.py")))


def main() -> None:
    """Generate everything."""
    generate_protobuf()
    generate_abi()


if __name__ == "__main__":
    main()
