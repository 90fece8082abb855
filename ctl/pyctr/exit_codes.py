"""Exit codes of `run` and `exec`, as docker's: what the container returned, or why it did not run."""

from typing import Final

from pyctr_wire.errors import ApiError

FAILURE: Final = 1
USAGE: Final = 2
OURS: Final = 125  # pyctr or its daemon failed
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
SIGNALLED: Final = 128  # plus the signal

# The only place that reads error texts: the OCI runtime's words for a program that cannot be
# started have no status code of their own, and docker's users know these two numbers.
_ABOUT_THE_PROGRAM: Final = ("failed: exec: ", "failed: exec ", "chdir to cwd")
_NOT_EXECUTABLE_TEXTS: Final = ("permission denied", "is a directory", "exec format error")
_NOT_FOUND_TEXTS: Final = ("executable file not found", "no such file or directory", "not a directory")


def of_start_error(error: ApiError) -> int:
    """Return the exit code for a container or exec that could not be started."""
    text = str(error).lower()
    if not any(words in text for words in _ABOUT_THE_PROGRAM):
        return OURS
    if any(words in text for words in _NOT_EXECUTABLE_TEXTS):
        return NOT_EXECUTABLE
    if any(words in text for words in _NOT_FOUND_TEXTS):
        return NOT_FOUND
    return OURS
