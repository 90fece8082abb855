"""The command's entry point."""

import gc
import os
import signal
import sys

_INTERRUPTED = 128 + 2
_BROKEN_PIPE = 128 + 13  # as a shell reports SIGPIPE


def main() -> None:
    """Run `pyctr` and end the process at once: to take the interpreter apart would cost a tenth of its life."""
    # A collection of what the imports make costs as much as a call to the daemon, and finds nothing.
    gc.disable()
    # An interrupt waits until there is somebody to take it: see interrupts.py, which would be an import more.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    from pyctr_wire import standard_streams

    standard_streams.fill()
    from pyctr.entry import run

    code = 0
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:  # before the command, or after it
        print("pyctr: interrupted", file=sys.stderr)
        code = _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        code = _BROKEN_PIPE
    except OSError as error:
        if not code:  # otherwise, why it is what it is has been told
            place = f"{error.filename}: " if error.filename else ""
            print(f"pyctr: {place}{error.strerror or error}", file=sys.stderr)
            code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
