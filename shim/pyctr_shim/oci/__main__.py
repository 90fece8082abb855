"""`pyctr-oci`: the runtime as a command, with runc's subcommands, options and exit statuses.

What is not supported is refused by the option's name; `--log FILE --log-format json` gets errors as
the lines that containerd's shim, conmon and dockerd read.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence

from pyctr_shim.oci import arguments
from pyctr_shim.oci.errors import OciError, describe


def main(given: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, for `run` and `exec` that of the program."""
    words = list(sys.argv[1:] if given is None else given)
    try:
        options = arguments.parse(words)
    except arguments.UsageError as error:
        _log(arguments.log_of(words), str(error))
        return 1
    try:
        status: int = options.command(options)
    except OciError as error:
        text = str(error)
    except OSError as error:
        text = describe(error)
    else:
        return status
    _log(options, text)
    return int(options.failure)


def _log(options: argparse.Namespace, text: str) -> None:
    sys.stderr.write(f"pyctr-oci: {text}\n")
    if not options.log:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.log_format == "json":
        line = json.dumps({"level": "error", "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level=error msg={json.dumps(text)}'
    with open(options.log, "a") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
