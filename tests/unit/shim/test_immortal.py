"""What a program does after everything in it was made immortal: what it would have done."""

import subprocess
import sys

import pytest

_PROGRAM = """
import gc, json, sys
from collections import OrderedDict
from pyctr_shim import loop, publisher
from pyctr_sys.immortal import immortalize

class Thing:
    made = 0
    def __init__(self): self.items = [self]
    def __del__(self): Thing.made += 1

before = {"list": [1, 2, 3], "text": "a" * 100, "thing": Thing(), "ordered": OrderedDict(a=1)}
gc.disable()
made = immortalize()
gc.freeze()
counts = [sys.getrefcount(item) for item in before.values()]
more = [before] * 1000 + list(before.values()) * 1000
assert counts == [sys.getrefcount(item) for item in before.values()]
before["list"].append(json.loads('{"a": [1, 2]}'))
before["ordered"]["b"] = 2
before["text"] += "b"
del before["text"]
before["thing"] = None
for _ in range(1000):
    Thing()
gc.collect()
assert Thing.made == 1000
one = loop.Loop()
one.call_later(0.001, one.stop)
one.run()
one.close()
print(made)
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="CPython 3.11 counts every reference")
def test_a_program_goes_on() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5000


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there, it can be done")
def test_where_it_cannot_be_done_nothing_is() -> None:
    program = "from pyctr_sys.immortal import immortalize; print(immortalize())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"0\n"
