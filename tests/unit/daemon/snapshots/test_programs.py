"""Programs that make file systems of what images hold."""

import pytest

from pyctr_wire.errors import Internal, ResourceExhausted
from pyctrd.snapshots.programs import run


def test_what_a_program_says_need_be_no_text() -> None:
    """A warning that names a file of an image is no reason to fail."""
    assert run("printf", r"\374 done") == "\ufffd done"


@pytest.mark.parametrize(
    ("said", "kind"), [(r"\374: No space left on device", ResourceExhausted), (r"\374: bad", Internal)]
)
def test_its_errors_are_told(said: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^sh: \ufffd: "):
        run("sh", "-c", f"printf '{said}' >&2; exit 1")
