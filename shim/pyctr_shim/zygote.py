"""The daemon's child that makes shims: `python -I -m pyctr_shim.zygote`, with the daemon's socket as fd 3.

What it does is in spares.py; this module only makes the process one that forks cheaply.
"""

import os
from typing import Any, Final

from pyctr_shim import sealed

_REQUEST_FD: Final = 3


def main() -> None:
    """Run until fd 3 ends."""
    sealed.run_from_sealed_copy()
    ignore_fork_handlers()
    from pyctr_shim import spares

    spares.serve(_REQUEST_FD)


def ignore_fork_handlers() -> None:
    """Let no module that is imported from now on register what is to happen at each fork.

    threading (which protobuf imports) and random do so. In a process that never has a second thread the handlers do
    nothing useful, and they write to half a megabyte of pages that the shims would otherwise share.
    """
    os.register_at_fork = _ignore


def _ignore(**_handlers: Any) -> None:
    """Take a handler and forget it."""


if __name__ == "__main__":
    main()
