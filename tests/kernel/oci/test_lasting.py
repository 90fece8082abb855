"""What every process of a container begins with, its execs too: execution domain and memory policy."""

from pathlib import Path

import pytest

from pyctr_shim.oci import forks
from pyctr_shim.oci.errors import OciError
from support.oci_bundle import Lab, Spec, process

pytestmark = pytest.mark.root
needs_numa = pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="the kernel knows no memory nodes")
MACHINE = ("busybox", "uname", "-m")
POLICY = ("cat", "/proc/self/numa_maps")


@pytest.fixture(params=["spawned", "forked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "forked":
        monkeypatch.setattr(forks, "spawn_into", lambda _joiner: None)


def with_linux(lab: Lab, *args: str, **linux: object) -> Spec:
    spec = lab.spec(*args)
    spec["linux"] |= linux
    return spec


@pytest.mark.usefixtures("way")
def test_the_execution_domain(lab: Lab) -> None:
    domain = {"domain": "LINUX32"}

    assert lab.run(with_linux(lab, *MACHINE, personality=domain)).output != ""
    container = lab.running(with_linux(lab, "sleep", "1000", personality=domain))
    found = {
        lab.exec(container, process(*MACHINE)).output,
        lab.run(with_linux(lab, *MACHINE, personality=domain)).output,
    }

    assert len(found) == 1
    assert found != {lab.run(lab.spec(*MACHINE)).output}


@needs_numa
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"mode": "MPOL_BIND", "nodes": "0"}, " bind:0 "),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}, " interleave=static:0 "),
        ({"mode": "MPOL_PREFERRED", "nodes": "0"}, " prefer:0 "),
        ({"mode": "MPOL_LOCAL"}, " local "),
        ({"mode": "MPOL_DEFAULT"}, " default "),
    ],
)
def test_the_memory_policy(lab: Lab, policy: Spec, shown: str) -> None:
    assert shown in lab.run(with_linux(lab, *POLICY, memoryPolicy=policy)).output
    container = lab.running(with_linux(lab, "sleep", "1000", memoryPolicy=policy))

    assert shown in lab.exec(container, process(*POLICY)).output


@needs_numa
@pytest.mark.parametrize(("nodes", "text"), [("1000", "linux.memoryPolicy: Invalid"), ("9999", "beyond any machine")])
def test_nodes_that_are_not_there_are_refused(lab: Lab, nodes: str, text: str) -> None:
    with pytest.raises(OciError, match=text):
        lab.create(with_linux(lab, "true", memoryPolicy={"mode": "MPOL_BIND", "nodes": nodes}))


def test_a_machine_without_resctrl_refuses_its_field(lab: Lab) -> None:
    if "resctrl" in Path("/proc/mounts").read_text():
        pytest.skip("a resctrl file system is mounted here")
    with pytest.raises(OciError, match=r"linux\.intelRdt: no resctrl file system is mounted"):
        lab.create(with_linux(lab, "true", intelRdt={"closID": "gold"}))
