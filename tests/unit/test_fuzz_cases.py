"""What a fuzzer has found once is not found again; the fuzzers work."""

import base64
import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"
TARGETS = ("config_json", "passwd", "seccomp_profile", "ttrpc_frames")
CASES: list[dict[str, str]] = json.loads((FUZZ / "cases.json").read_text())


def target(name: str) -> Any:
    return importlib.import_module(f"fuzz.{name}")


@pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])
def test_a_case_that_was_found(case: dict[str, str]) -> None:
    data = base64.b64decode(case["base64"]) if "base64" in case else case["data"].encode()
    target(case["target"]).check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_content_with_its_own_seeds(name: str) -> None:
    for seed in target(name).seeds:
        target(name).check(seed)


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.timeout(600)
def test_atheris_finds_nothing_in_some_seconds(name: str) -> None:
    done = subprocess.run([FUZZ / "run", "10", name], capture_output=True, text=True, check=False)

    if done.returncode == 2:
        pytest.skip(done.stderr.strip()[-300:])
    assert done.returncode == 0, done.stderr[-4000:]
