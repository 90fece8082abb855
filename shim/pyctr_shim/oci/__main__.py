"""`pyctr-oci`: the runtime as a command, with runc's subcommands, options and exit statuses.

What is not supported is refused by the option's name; `--log FILE --log-format json` gets errors as
the lines that containerd's shim, conmon and dockerd read.
"""

import os
import sys
from typing import Final

from pyctr_shim import sealed
from pyctr_wire import standard_streams

_MAKERS: Final = {"create", "run", "exec"}


def main() -> int:
    """Run the command; returns its exit status, for `run` and `exec` that of the program."""
    standard_streams.fill()  # or the first file that is opened becomes the container's output
    words = sys.argv[1:]
    if not _MAKERS.isdisjoint(words):
        # What is loaded before is loaded twice. A word that is no subcommand costs that, and nothing else.
        sealed.run_from_sealed_copy()
    from pyctr_shim.oci import arguments, log
    from pyctr_shim.oci.errors import OciError, describe

    try:
        options = arguments.parse(words)
    except arguments.UsageError as error:
        log.error(arguments.log_of(words), str(error))
        return 1
    try:
        if os.geteuid() and options.rootless != "false":
            from pyctr_shim.oci import rootless  # seldom needed

            rootless.enter(options)
        status: int = options.command(options)
    except OciError as error:
        text = str(error)
    except OSError as error:
        text = describe(error)
    else:
        return status
    log.error(options, text)
    return int(options.failure)


if __name__ == "__main__":
    sys.exit(main())
