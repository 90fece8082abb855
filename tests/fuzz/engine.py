"""Starts atheris on one target: python -m fuzz.engine TARGET [libFuzzer's options]; started by tests/fuzz/run.

A target is a module of this package with `check(data)`, which fails on what should not be; `seeds`; and maybe
`mutate(data, most, seed)` where the data has a form that random bytes would not hit.
"""

import importlib
import sys
from pathlib import Path
from typing import Final

import atheris

WATCHED: Final = [
    "pyctr_shim.oci",
    "pyctr_shim.server",
    "pyctr_wire.ttrpc",
    "pyctrd.runtime.image_user",
    "pyctrd.server",
]
TARGETS: Final = ("config_json", "passwd", "seccomp_profile", "ttrpc_frames")


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough; a failure ends the process and leaves its data."""
    name, corpus = sys.argv[1], Path(sys.argv[2])
    with atheris.instrument_imports(include=WATCHED):
        target = importlib.import_module(f"fuzz.{name}")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    mutator = getattr(target, "mutate", None)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.check, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
