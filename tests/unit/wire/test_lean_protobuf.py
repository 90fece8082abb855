"""protobuf without its implementation in Python, which is there as soon as somebody wants it."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2
from google.protobuf.internal import python_message
if "wanted" in sys.argv:
    python_message.GeneratedProtocolMessageType
assert tasks_pb2.ListTasksRequest.FromString(tasks_pb2.ListTasksRequest(filter="a").SerializeToString()).filter == "a"
print("google.protobuf.text_format" in sys.modules)
"""


def _loaded(*arguments: str, implementation: str = "upb") -> bool:
    """Use a message in a new process; return whether the implementation in Python has been loaded."""
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation}
    program = [sys.executable, "-c", _PROGRAM, *arguments]
    return subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout == "True\n"


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="upb is an extension of CPython")
def test_it_is_not_loaded() -> None:
    assert not _loaded()


def test_it_is_loaded_for_who_asks() -> None:
    assert _loaded("wanted")


def test_it_is_loaded_where_there_is_no_other() -> None:
    assert _loaded(implementation="python")
