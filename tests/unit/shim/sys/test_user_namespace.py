"""Which ids a user may have, and what becomes of them in a namespace."""

import pytest

from pyctr_sys.user_namespace import Range, granted, with_own

LINES = ["# comment", "", "ann:100000:65536", "bob:200000:10", "1000:300000:5", "ann:x:5", "ann:1", "ann:7:0"]


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("ann", 1000, [(100000, 65536), (300000, 5)]),
        ("bob", 1, [(200000, 10)]),
        ("eve", 2, []),
        ("ann", -1, [(100000, 65536)]),
    ],
)
def test_grants_are_by_name_or_number(name: str, number: int, expected: list[tuple[int, int]]) -> None:
    assert granted(LINES, name, number) == expected


def test_the_user_is_root_and_what_is_granted_follows() -> None:
    assert with_own(1000, [(100000, 10), (300000, 5)]) == [
        Range(0, 1000, 1),
        Range(1, 100000, 10),
        Range(11, 300000, 5),
    ]
