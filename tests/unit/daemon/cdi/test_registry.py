"""Which file's description of a device counts, and what is said if there is none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire.errors import FailedPrecondition
from pyctrd.cdi.names import DeviceName
from pyctrd.cdi.registry import Registry

CARD = DeviceName("vendor.com/card", "a")


def spec(value: str, *devices: str, kind: str = "vendor.com/card") -> dict[str, Any]:
    """Return a document that sets FROM to `value` for each of its devices, and ALL for all of them."""
    return {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": {"env": [f"ALL={value}"]},
        "devices": [{"name": name, "containerEdits": {"env": [f"FROM={value}"]}} for name in devices],
    }


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """Two, of which the second one counts more."""
    for name in ("etc", "run"):
        (tmp_path / name).mkdir()
    return tmp_path / "etc", tmp_path / "run"


def write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document))


def environment(registry: Registry, *devices: DeviceName) -> list[str]:
    return [entry for edits in registry.edits(devices) for entry in edits["env"]]


def test_a_later_directory_counts_more(directories: tuple[Path, Path]) -> None:
    write(directories[0] / "vendor.json", spec("etc", "a", "b"))
    registry = Registry(directories)
    assert environment(registry, CARD) == ["ALL=etc", "FROM=etc"]

    write(directories[1] / "other.json", spec("run", "a"))

    assert environment(registry, CARD) == ["ALL=run", "FROM=run"]
    assert environment(registry, CARD._replace(name="b")) == ["ALL=etc", "FROM=etc"]


def test_what_is_of_all_devices_of_a_file_comes_once(directories: tuple[Path, Path]) -> None:
    write(directories[0] / "vendor.json", spec("x", "a", "b"))
    found = environment(Registry(directories), CARD, CARD._replace(name="b"))
    assert found == ["ALL=x", "FROM=x", "FROM=x"]


def test_a_changed_file_is_read_anew_and_a_removed_one_forgotten(directories: tuple[Path, Path]) -> None:
    path, registry = directories[0] / "vendor.json", Registry(directories)
    write(path, spec("one", "a"))
    assert environment(registry, CARD)[0] == "ALL=one"
    write(path.with_suffix(".new"), spec("two", "a"))
    os.replace(path.with_suffix(".new"), path)
    assert environment(registry, CARD)[0] == "ALL=two"
    path.unlink()
    with pytest.raises(FailedPrecondition):
        registry.edits([CARD])


def test_yaml_says_the_same(directories: tuple[Path, Path]) -> None:
    text = """
        cdiVersion: "0.6.0"
        kind: vendor.com/card
        devices:
        - name: a
          containerEdits:
            env: [FROM=yaml]
            deviceNodes:
            - {path: /dev/card, fileMode: 0660}
    """
    (directories[0] / "vendor.yaml").write_text(text)
    (edits,) = [one for one in Registry(directories).edits([CARD]) if one]
    assert edits["env"] == ["FROM=yaml"]
    assert edits["deviceNodes"][0]["fileMode"] == 0o660


def test_two_files_of_one_directory_must_not_describe_the_same_device(directories: tuple[Path, Path]) -> None:
    for name in ("one", "two"):
        write(directories[0] / f"{name}.json", spec(name, "a", name))
    registry = Registry(directories)
    with pytest.raises(FailedPrecondition, match=r"a: \S*one.json and \S*two.json both describe it: take it out"):
        registry.edits([CARD])
    assert environment(registry, CARD._replace(name="two")) == ["ALL=two", "FROM=two"]

    write(directories[1] / "three.json", spec("three", "a"))
    assert environment(registry, CARD)[0] == "ALL=three"


def test_what_cannot_be_found_is_named_with_the_place_and_what_is_there(directories: tuple[Path, Path]) -> None:
    write(directories[0] / "vendor.json", spec("x", "c", "b"))
    (directories[0] / "broken.json").write_text("{")
    (directories[1] / "broken.yaml").write_text("a: [")
    (directories[1] / "lost.json").symlink_to("nowhere")
    (directories[1] / "readme.txt").write_text("not a spec")
    os.mkfifo(directories[1] / "fifo.json")
    with pytest.raises(FailedPrecondition) as failure:
        Registry(directories).edits([CARD])
    text = str(failure.value)
    assert f"CDI device vendor.com/card=a: no file in {directories[0]}, {directories[1]} describes it" in text
    assert "its driver's installation writes one; of vendor.com/card there are b, c;" in text
    for name in ("broken.json cannot be used: it is not valid JSON", "broken.yaml cannot be used: it is not valid YAML",
                 "lost.json cannot be used: No such file", "fifo.json cannot be used"):  # fmt: skip
        assert name in text, text
    assert "readme" not in text


def test_a_file_is_not_read_without_end(directories: tuple[Path, Path]) -> None:
    with (directories[0] / "huge.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(FailedPrecondition, match=r"huge.json cannot be used: it is larger than"):
        Registry(directories).edits([CARD])


def test_without_directories_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"cdi.directories is empty"):
        Registry(()).edits([CARD])
    with pytest.raises(FailedPrecondition, match="no file in"):
        Registry((tmp_path / "not there",)).edits([CARD])
    assert Registry(()).edits([]) == []
