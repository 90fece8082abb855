"""What goes wrong in the runtime, said once."""


class OciError(Exception):
    """A container or process cannot be made as asked; `str()` is meant for the client.

    `errno` is that of the system call behind it, 0 if there is none.
    """

    def __init__(self, text: str, number: int = 0) -> None:
        """Keep the text and the error number."""
        super().__init__(text)
        self.errno = number


class PoststopFailed(OciError):
    """A container is deleted; one of its poststop hooks failed, which is no more than a warning."""


def describe(error: OSError) -> str:
    """Return an OSError as one line: the call, its object and the reason, without Python's brackets."""
    text = error.strerror or str(error)
    return f"{text} ({error.filename})" if error.filename else text
