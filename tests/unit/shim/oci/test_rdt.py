"""Intel RDT, on a directory that stands for a resctrl file system."""

from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import rdt
from pyctr_shim.oci.errors import OciError


@pytest.fixture
def resctrl(tmp_path: Path) -> Path:
    """A resctrl file system as far as files go: the kernel would put these into each group by itself."""
    root = tmp_path / "resctrl"
    (root / "mon_groups").mkdir(parents=True)
    (root / "schemata").write_text("    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n")
    (root / "tasks").touch()
    (tmp_path / "mountinfo").write_text(
        f"24 1 254:0 / / rw - ext4 /dev/vda rw\n30 24 0:26 / {root} rw - resctrl resctrl rw\n"
    )
    return root


def plan(resctrl: Path, **spec: Any) -> rdt.Groups:
    found = rdt.plan(spec, "c1", str(resctrl.parent / "mountinfo"))
    assert found is not None
    return found


def fill(group: Path, schemata: str = "") -> None:
    """Do what the kernel does when a group is made."""
    (group / "mon_groups").mkdir(parents=True, exist_ok=True)
    (group / "schemata").write_text(schemata)
    (group / "tasks").touch()


def test_without_the_field_nothing_is_touched() -> None:
    assert rdt.plan(None, "c1", "/nowhere") is None


def test_a_machine_without_resctrl_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("24 1 254:0 / / rw - ext4 /dev/vda rw\n")

    with pytest.raises(OciError, match=r"linux\.intelRdt: no resctrl file system is mounted"):
        rdt.plan({"closID": "x"}, "c1", str(tmp_path / "mountinfo"))


@pytest.mark.parametrize("name", ["..", "a/b", "info", "/a"])
def test_a_class_that_is_no_name_is_refused(resctrl: Path, name: str) -> None:
    with pytest.raises(OciError, match=r"linux\.intelRdt\.closID"):
        plan(resctrl, closID=name)


def test_what_belongs_to_the_container_goes_with_it(resctrl: Path) -> None:
    own = plan(resctrl, enableMonitoring=True)
    named = plan(resctrl, closID="gold", enableMonitoring=True)
    root = plan(resctrl, closID="/")

    assert own.joined == [f"{resctrl}/c1", f"{resctrl}/c1/mon_groups/c1"]
    assert own.made == list(reversed(own.joined))
    assert named.made == [f"{resctrl}/gold/mon_groups/c1"]
    assert (root.joined, root.made) == ([str(resctrl)], [])


@pytest.mark.parametrize(
    ("spec", "lines"),
    [
        ({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"}, ("L3:0=f", "MB:0=20")),
        ({"l3CacheSchema": "L3:0=f\nMB:0=10", "memBwSchema": "MB:0=20"}, ("L3:0=f", "MB:0=20")),
        ({"memBwSchema": "MB:0=20", "schemata": ["L2:0=f", "MB:0=30"]}, ("MB:0=20", "L2:0=f", "MB:0=30")),
        ({}, ()),
    ],
)
def test_the_general_lines_come_last(resctrl: Path, spec: dict[str, Any], lines: tuple[str, ...]) -> None:
    assert plan(resctrl, **spec).lines == lines


def test_bandwidth_must_be_one_line_of_its_own(resctrl: Path) -> None:
    for wrong in ("L3:0=f", "MB:0=1\nL3:0=f"):
        with pytest.raises(OciError, match=r"linux\.intelRdt\.memBwSchema"):
            plan(resctrl, memBwSchema=wrong)


def test_a_class_without_limits_must_be_there(resctrl: Path) -> None:
    groups = plan(resctrl, closID="gold")
    with pytest.raises(OciError, match=r"linux\.intelRdt\.closID: there is no .*/gold"):
        rdt.make(groups)

    fill(resctrl / "gold")
    rdt.make(groups)

    assert (resctrl / "gold/tasks").read_text() == "0"
    assert (resctrl / "gold/schemata").read_text() == ""


@pytest.mark.parametrize(("there", "fits"), [("L3:0=00f;1=7ff\nMB:0=100\n", True), ("L3:0=1f;1=7ff\n", False)])
def test_a_class_that_is_there_must_have_these_limits(resctrl: Path, there: str, fits: bool) -> None:
    fill(resctrl / "gold", there)
    groups = plan(resctrl, closID="gold", schemata=["L3:0=f"])

    if fits:
        rdt.make(groups)
        assert (resctrl / "gold/schemata").read_text() == there
    else:
        with pytest.raises(OciError, match="has other limits"):
            rdt.make(groups)


def test_a_group_of_somebody_elses_by_the_containers_name_stays_his(resctrl: Path) -> None:
    fill(resctrl / "c1")

    with pytest.raises(OciError, match=r"linux\.intelRdt: .*/c1 is there already"):
        plan(resctrl, memBwSchema="MB:0=20")


def test_all_threads_are_moved_also_those_made_meanwhile(resctrl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = {1: [1, 11], 2: [2]}
    monkeypatch.setattr(rdt, "_threads", lambda pid: threads.get(pid, []))

    def write(path: str, text: str) -> None:
        for name, data in (("tasks", ""), (path.rpartition("/")[2], f"{text}\n")):  # the kernel's groups have theirs
            with Path(path).with_name(name).open("a") as file:
                file.write(data)
        if text == "11":
            threads[3] = [3]  # forked by 2, which had not been moved yet
        if text == "2":
            del threads[2]
            raise ProcessLookupError

    monkeypatch.setattr(rdt, "_write", write)

    rdt.enclose(plan(resctrl, memBwSchema="MB:0=20"), lambda: [*threads])

    assert set((resctrl / "c1/tasks").read_text().split()) == {"1", "11", "2", "3"}
    assert (resctrl / "c1/schemata").read_text().split() == ["MB:0=20"]


def test_other_limits(resctrl: Path) -> None:
    fill(resctrl / "gold")

    rdt.change(f"{resctrl}/gold", {"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"})

    assert (resctrl / "gold/schemata").read_text() == "L3:0=f\nMB:0=20\n"
    with pytest.raises(OciError, match=r"linux\.intelRdt\.memBwSchema"):
        rdt.change(f"{resctrl}/gold", {"memBwSchema": "L3:0=f"})
    with pytest.raises(OciError, match=r"linux\.intelRdt: .*/silver/schemata: No such file"):
        rdt.change(f"{resctrl}/silver", {"memBwSchema": "MB:0=20"})
