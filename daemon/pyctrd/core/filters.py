"""The filter language of every List and of Subscribe.

    filter    := selector ("," selector)*        all must hold
    selector  := fieldpath [ op value ]          without op: is the field there?
    fieldpath := field ("." field)*
    field     := [A-Za-z0-9_]+ | quoted
    op        := "==" | "!=" | "~="              ~= searches with a regular expression, as RE2 has them
    value     := printable characters but space and comma | quoted
    quoted    := "…" with Go's escapes; after ~= also /…/ and |…|

Source: containerd pkg/filters.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.labels import Labels

Adaptor: TypeAlias = Callable[[tuple[str, ...]], tuple[str, bool]]
"""An object as a filter sees it: a field path to its value and whether it is there (else "")."""

Filter: TypeAlias = Callable[[Adaptor], bool]

_FIELD: Final = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR: Final = re.compile(r"==|!=|~=")
_SPACE: Final = re.compile(r"\s*")
_MOST_EXPRESSIONS: Final = 32  # one may take 60 ms to compile, in which nothing else runs, and 8 MiB
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_SIMPLE_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}


def compile_filters(texts: Sequence[str]) -> Filter:
    """Return the test that an object passes if it matches any of `texts`, or if there are none.

    Raises InvalidArgument with the place of the first syntax error, or for too many expressions.
    """
    if sum(text.count("~=") for text in texts) > _MOST_EXPRESSIONS:
        raise InvalidArgument(f"filters: more than {_MOST_EXPRESSIONS} regular expressions")
    if not texts or "" in texts:
        for text in texts:
            _Parser(text).parse()
        return lambda _: True
    filters = [_Parser(text).parse() for text in texts]
    return lambda adaptor: any(all(selector(adaptor) for selector in selectors) for selectors in filters)


def label_field(labels: Labels, path: tuple[str, ...]) -> tuple[str, bool]:
    """Return the label that the rest of a field path names: its parts joined by `.` again."""
    key = ".".join(path)
    return labels.get(key, ""), key in labels


def text_field(text: str) -> tuple[str, bool]:
    """Return a text field, which is there if it is not empty."""
    return text, bool(text)


def _present(path: tuple[str, ...]) -> Filter:
    return lambda adaptor: adaptor(path)[1]


def _compare(path: tuple[str, ...], operator: str, value: str) -> Filter:
    if operator == "==":
        return lambda adaptor: adaptor(path) == (value, True)
    if operator == "!=":
        return lambda adaptor: adaptor(path)[0] != value
    return _search(path, value)


def _search(path: tuple[str, ...], expression: str) -> Filter:
    """Return the test whether a client's `expression` is found in a field.

    Its syntax is RE2's, and so is its cost: no text takes more than linear time, where Python's own expressions
    go back and try again, for hours if somebody means them to, while nothing else runs.
    """
    import re2  # not loaded until somebody searches

    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(_encode(expression), options)
    except re2.error:
        return lambda _: False  # as there: a bad expression matches nothing
    finally:
        re2.purge()  # it keeps the last hundred, and a large one has some MiB
    return lambda adaptor: pattern.search(_encode(adaptor(path)[0])) is not None


def _encode(text: str) -> bytes:
    """Return UTF-8, or what is none for half a surrogate pair: it makes a bad expression, and is never found."""
    return text.encode("utf-8", "surrogatepass")


class _Parser:
    """Recursive descent over one filter text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> list[Filter]:
        """Return the selectors, none for an empty text."""
        selectors: list[Filter] = []
        if self._peek() == "":
            return selectors
        while True:
            selectors.append(self._selector())
            if self._peek() == "":
                return selectors
            if self._peek() != ",":
                raise self._error("expected a separator or end of input")
            self._at += 1

    def _selector(self) -> Filter:
        path = self._fieldpath()
        if self._peek() in ("", ","):
            return _present(path)
        operator = _OPERATOR.match(self._text, self._at)
        if operator is None:
            raise self._error("expected an operator")
        self._at = operator.end()
        return _compare(path, operator[0], self._value(operator[0]))

    def _fieldpath(self) -> tuple[str, ...]:
        fields = [self._field()]
        while self._peek() == ".":
            self._at += 1
            fields.append(self._field())
        return tuple(fields)

    def _field(self) -> str:
        if self._peek() == '"':
            return self._quoted()
        field = _FIELD.match(self._text, self._at)
        if field is None:
            raise self._error("expected field or quoted")
        self._at = field.end()
        return field[0]

    def _value(self, operator: str) -> str:
        first = self._peek()
        if first and first in ('"/|' if operator == "~=" else '"'):
            return self._quoted()
        start = self._at
        while self._at < len(self._text) and self._text[self._at] != "," and not self._text[self._at].isspace():
            if not self._text[self._at].isprintable():
                raise self._error("expected a printable character")
            self._at += 1
        if self._at == start:
            raise self._error("expected value or quoted")
        return self._text[start : self._at]

    def _quoted(self) -> str:
        quote = self._text[self._at]
        self._at += 1
        parts: list[str] = []
        while self._at < len(self._text):
            match self._text[self._at]:
                case "\\":
                    parts.append(self._escape(quote))
                    continue
                case "\n":
                    raise self._error("newline in quoted text")
                case char if char == quote:
                    self._at += 1
                    return "".join(parts)
                case char:
                    parts.append(char)
                    self._at += 1
        raise self._error("quoted text is not closed")

    def _escape(self, quote: str) -> str:
        escape = _ESCAPE.match(self._text, self._at)
        if escape is None:
            raise self._error("quoted text is not closed")
        octal, *hexadecimals, simple = escape.groups()
        number = next((digits for digits in hexadecimals if digits is not None), None)
        try:
            if octal is not None:
                result = chr(int(octal, 8))
            elif number is not None:
                result = chr(int(number, 16))
            elif quote != '"' and simple != quote and simple not in _SIMPLE_ESCAPES:
                # A regular expression between slashes or bars keeps its own backslashes, but for those that Go takes.
                result = escape[0]
            else:
                result = simple if simple == quote else _SIMPLE_ESCAPES[simple]
        except (KeyError, ValueError) as error:
            raise self._error("unknown escape") from error
        self._at = escape.end()
        return result

    def _peek(self) -> str:
        """Skip white space and return the next character, "" at the end."""
        space = _SPACE.match(self._text, self._at)
        if space is not None:
            self._at = space.end()
        return self._text[self._at : self._at + 1]

    def _error(self, reason: str) -> InvalidArgument:
        before, here, after = self._text[: self._at], self._text[self._at : self._at + 1], self._text[self._at + 1 :]
        place = f"[{before} >|{here}|< {after}]" if here else f"[{self._text}]"
        return InvalidArgument(f"filters: parse error: {place}: {reason}")
