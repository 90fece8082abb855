"""Generate the protobuf modules and the cffi tables in place.

Run as `python proto/generate.py` in a checkout; the package build calls `main` through
`hatch_hook.py`. Nothing that this writes is committed. What is there already and stays as it is
is not touched, and what changes is replaced in one step: programs may run from the checkout meanwhile.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
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


def _typed_stubs(into: Path) -> list[str]:
    """Return what has protoc write types for the stubs: grpc's own generator knows none."""
    # A build of a package runs in an environment whose programs are in $PATH, a checkout's beside its interpreter.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plugin = shutil.which("protoc-gen-mypy_grpc", path=places)
    if plugin is None:
        sys.exit("generate: install mypy-protobuf (it has protoc-gen-mypy_grpc)")
    return [f"--plugin=protoc-gen-mypy_grpc={plugin}", f"--mypy_grpc_out=quiet:{into}"]


def generate_protobuf(into: Path) -> None:
    """Compile every .proto file below proto/ into modules below `into`."""
    sources = sorted(PROTO.rglob("*.proto"))
    with_services = [path for path in sources if "\nservice " in path.read_text()]
    includes = [f"-I{root}" for root in _include_roots()]
    runs = [
        (sources, [f"--python_out={into}", f"--pyi_out={into}"]),
        (with_services, [f"--grpc_python_out={into}", *_typed_stubs(into)]),
    ]
    for files, outputs in runs:
        names = [str(path.relative_to(PROTO)) for path in files]
        if protoc.main(["protoc", *includes, *outputs, *names]) != 0:
            sys.exit("generate: the .proto files do not compile")


def generate_abi(into: Path) -> None:
    """Compile the cffi declarations of pyctr_sys into `_abi.py` in `into`."""
    spec = importlib.util.spec_from_file_location("pyctr_sys_build", ABI_BUILD)
    if spec is None or spec.loader is None:
        sys.exit(f"generate: {ABI_BUILD} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ffi.emit_python_code(str(into / "_abi.py"))


def replace_changed(made: Path, place: Path) -> None:
    """Move the files of one tree to their places in another one, unless they are there already."""
    for source in (path for path in made.rglob("*") if path.is_file()):
        target = place / source.relative_to(made)
        if not target.exists() or target.read_bytes() != source.read_bytes():
            source.replace(target)


def main() -> None:
    """Generate everything."""
    with tempfile.TemporaryDirectory(prefix=".generated-", dir=ROOT) as made:
        modules, tables = Path(made, "proto"), Path(made, "sys")
        modules.mkdir()
        tables.mkdir()
        generate_protobuf(modules)
        generate_abi(tables)
        replace_changed(modules, PROTO)
        replace_changed(tables, ABI_BUILD.parent)


if __name__ == "__main__":
    main()
