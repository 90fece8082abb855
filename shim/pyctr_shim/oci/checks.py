"""The building blocks of validate.py's tables.

Each checks a value; where that lies is only put together for an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci.errors import OciError

_LARGEST_ID: Final = (1 << 32) - 2  # (uid_t)-1 means "leave it"
_MOST_ENTRIES: Final = 1 << 20

Check = Callable[[Any], None]


class Wrong(Exception):
    """A value that is wrong; its path is completed by those who called."""

    def __init__(self, text: str) -> None:
        """Say what is wrong with it."""
        super().__init__(text)
        self.path: list[str] = []

    def located(self, root: str) -> OciError:
        """Return the error to show, with the whole path below `root`."""
        path = root
        for step in reversed(self.path):
            path += step if step.startswith("[") or not path else f".{step}"
        return OciError(f"{path or 'config.json'}: {self}")


def run(check: Check, value: Any, root: str) -> None:
    """Check a document. Raises OciError naming the field, `root` in front."""
    try:
        check(value)
    except Wrong as wrong:
        raise wrong.located(root) from None


def of_type(kind: type, words: str) -> Check:
    """Return a check for a JSON type, called `words`."""

    def check(value: Any) -> None:
        if type(value) is not kind:  # exactly: to Python, true is a whole number
            raise Wrong(f"must be {words}")

    return check


BOOL = of_type(bool, "true or false")
INT = of_type(int, "a whole number")
_STRING = of_type(str, "a string")


def any_text(value: Any) -> None:
    """Check for a string that is text: JSON's escapes can also spell halves of a character."""
    _STRING(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Wrong("is not Unicode text") from None


def text(value: Any) -> None:
    """Check for a string that C can hold."""
    any_text(value)
    if "\0" in value:
        raise Wrong("contains a NUL byte")


def absolute(value: Any) -> None:
    """Check for an absolute path."""
    text(value)
    if not value.startswith("/"):
        raise Wrong(f"{value!r} is not an absolute path")


def an_id(value: Any) -> None:
    """Check for a uid or gid."""
    INT(value)
    if not 0 <= value <= _LARGEST_ID:
        raise Wrong(f"{value} is not a uid or gid")


def between(least: int, most: int) -> Check:
    """Return a check for a whole number between two, both included."""

    def check(value: Any) -> None:
        INT(value)
        if not least <= value <= most:
            raise Wrong(f"{value} is not between {least} and {most}")

    return check


def one_of(*choices: str) -> Check:
    """Return a check for one of some words."""
    allowed = frozenset(choices)

    def check(value: Any) -> None:
        _STRING(value)
        if value not in allowed:
            raise Wrong(f"{value!r} is not one of {', '.join(choices)}")

    return check


def a_list(item: Check, most: int = _MOST_ENTRIES) -> Check:
    """Return a check for a list of at most `most` such items."""

    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise Wrong("must be a list")
        if len(value) > most:
            raise Wrong(f"more than {most} entries")
        for number, entry in enumerate(value):
            try:
                item(entry)
            except Wrong as wrong:
                wrong.path.append(f"[{number}]")
                raise

    return check


_TEXTS: Final = a_list(text)


def texts(value: Any) -> None:
    """Check for a list of strings that C can hold."""
    try:
        together = "".join(value)
    except TypeError:
        together = "\0"
    # One look at all, which finds nothing nearly always, instead of one at each.
    if "\0" in together or not together.isascii() or type(value) is not list or len(value) > _MOST_ENTRIES:
        _TEXTS(value)


def a_map(item: Check) -> Check:
    """Return a check for an object with any keys that C can hold and such values."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise Wrong("must be an object")
        for key, entry in value.items():
            try:
                text(key)
            except Wrong as wrong:
                raise Wrong(f"the key {key!r} {wrong}") from None
            try:
                item(entry)
            except Wrong as wrong:
                wrong.path.append(key)
                raise

    return check


def an_object(required: tuple[str, ...] = (), /, **fields: Check) -> Check:
    """Return a check for an object with these fields; others are unknown and pass."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise Wrong("must be an object")
        for key in required:
            if value.get(key) is None:
                wrong = Wrong("is required")
                wrong.path.append(key)
                raise wrong
        for key, entry in value.items():
            if entry is not None and (field := fields.get(key)) is not None:
                try:
                    field(entry)
                except Wrong as wrong:
                    wrong.path.append(key)
                    raise

    return check


@dataclass(frozen=True, slots=True)
class Refused:
    """A field of the specification that is not done here; empty and false values ask for nothing."""

    why: str = "is not supported"

    def __call__(self, value: Any) -> None:
        """Raise Wrong if the value asks for something."""
        if value not in (None, False, 0, "", [], {}):
            raise Wrong(self.why)
