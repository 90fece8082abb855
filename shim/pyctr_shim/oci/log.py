"""What `pyctr-oci` has to tell: on stderr, and in --log's file as containerd's shim, conmon and dockerd read it."""

import argparse
import json
import sys
import time


def error(options: argparse.Namespace, text: str) -> None:
    """Tell why a command fails."""
    _tell(options, "error", text)


def warning(options: argparse.Namespace, text: str) -> None:
    """Tell what did not keep a command from success."""
    _tell(options, "warning", text)


def _tell(options: argparse.Namespace, level: str, text: str) -> None:
    sys.stderr.write(f"pyctr-oci: {text}\n")
    if not options.log:
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if options.log_format == "json":
        line = json.dumps({"level": level, "msg": text, "time": stamp})
    else:
        line = f'time="{stamp}" level={level} msg={json.dumps(text)}'
    try:
        with open(options.log, "a") as file:
            file.write(line + "\n")
    except OSError as trouble:  # the exit status is that of the command all the same
        sys.stderr.write(f"pyctr-oci: --log {options.log}: {trouble.strerror}\n")
