"""Numbers as archives write them; none of them may be negative or beyond 63 bits."""

from pyctrd.diff.errors import ArchiveError

MAX_NUMBER = (1 << 63) - 1

# A longer text is refused before it is converted.
_MAX_DIGITS = 19


def octal(field: bytes, what: str) -> int:
    """Return an octal or base-256 number that is not negative. Raises ArchiveError otherwise."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ArchiveError(f"a {what} is negative")
        value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    else:
        digits = field.strip(b" \0").split(b"\0", 1)[0]
        if not digits:
            return 0
        # isdigit keeps out what int() would take as well: signs, underscores, prefixes.
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            raise ArchiveError(f"a {what} is no number")
        value = int(digits, 8)
    if value > MAX_NUMBER:
        raise ArchiveError(f"a {what} is out of range")
    return value


def decimal(text: bytes, what: str) -> int:
    """Return a decimal number of at most 63 bits. Raises ArchiveError for anything else, also for a negative one."""
    if not text.isdigit() or len(text) > _MAX_DIGITS or (number := int(text)) >= 1 << 63:
        raise ArchiveError(f"{what} is {text[:40].decode(errors='replace')!r}, not a number in range")
    return number
