"""Numbers as archives write them; none of them may be negative or beyond 63 bits."""

from pyctrd.diff.errors import ArchiveError

MAX_NUMBER = (1 << 63) - 1

# A longer text is refused before it is converted.
_MAX_DIGITS = 19


def octal(field: bytes, what: str) -> int:
    """Return an octal or base-256 number that is not negative. Raises ArchiveError otherwise."""
    digits = field.strip(b" \0")
    # isdigit keeps out what int() would take as well: signs, underscores, prefixes.
    if digits.isdigit():
        try:
            return int(digits, 8)
        except ValueError as error:  # an 8 or a 9
            raise ArchiveError(f"a {what} is no number") from error
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise ArchiveError(f"a {what} is negative")
        value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
        if value > MAX_NUMBER:
            raise ArchiveError(f"a {what} is out of range")
        return value
    digits, nul, _ = digits.partition(b"\0")
    if nul:
        return octal(digits, what)  # what follows the NUL are remains
    if digits:
        raise ArchiveError(f"a {what} is no number")
    return 0


def decimal(text: bytes, what: str) -> int:
    """Return a decimal number of at most 63 bits. Raises ArchiveError for anything else, also for a negative one."""
    if not text.isdigit() or len(text) > _MAX_DIGITS or (number := int(text)) >= 1 << 63:
        raise ArchiveError(f"{what} is {text[:40].decode(errors='replace')!r}, not a number in range")
    return number
