"""What keeps the streams beside a shim of another make."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pyctr_shim import beside
from pyctr_shim.loop import Future, Loop

_ATTACHED: Final = 5
_SECONDS: Final = 0.5


class _Streams:
    """Those of an exec that has closed its output and lives on, with clients."""

    status = "running"
    attended = True

    def __init__(self) -> None:
        self.drained: Future[None] = Future()
        self.drained.set(None)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[beside.Beside]:
    names = {"stdin": "", "stdout": "", "stderr": "", "terminal": False}
    (tmp_path / "task.json").write_text(json.dumps({"namespace": "ns", "id": "web", **names}))
    (tmp_path / "streams").mkdir()
    signal_fd = os.eventfd(0)
    loop = Loop()
    made = beside.Beside(loop, str(tmp_path), str(tmp_path / "attach"), signal_fd)
    yield made
    made._listener.close()
    os.close(made._lock_fd)
    loop.close()
    os.close(signal_fd)


def test_records_are_looked_for_seldom_however_many_wait(kept: beside.Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def read(path: str) -> Any:
        looks.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(beside, "_read", read)
    kept._known["e"] = _Streams()  # type: ignore[assignment]
    for _ in range(_ATTACHED):
        kept.streams("e")
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        kept._loop.run_once()
    # After 10 ms, and then twice as long each time, up to a quarter of a second.
    assert 2 <= len(looks) <= 7
