"""Specs that are not meant well, given to the real runtime: an error that says what, and nothing is left."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyctr_shim.oci.cgroups import mounted
from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.rootfs import RootfsMount
from support.hostile_documents import VALUES, full_spec, places, replaced, without
from support.hostile_documents import Path as Place
from support.oci_bundle import Lab, Spec, make_root

pytestmark = pytest.mark.root

# Not changed here: whose root it is, what the host's programs would be told to do, and where it is mounted from.
KEPT = {"root", "hooks", "source", "cgroupsPath"}


def real_spec(lab: Lab) -> Spec:
    """Return a spec with every field that this machine can do; what it cannot is left to the unit tests."""
    spec = full_spec()
    linux = spec["linux"]
    spec["mounts"] = [item for item in spec["mounts"] if item["destination"] not in {"/srv", "/etc/hosts"}]
    spec["process"]["user"] = {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}
    spec.pop("hooks")
    for name in ("netDevices", "intelRdt", "timeOffsets", "uidMappings", "gidMappings", "memoryPolicy"):
        linux.pop(name)
    linux["namespaces"] = [{"type": kind} for kind in ("pid", "network", "mount", "ipc", "uts", "cgroup")]
    linux["cgroupsPath"] = f"{lab.cgroup}/hostile"
    for name in ("listenerPath", "listenerMetadata", "defaultErrnoRet"):
        linux["seccomp"].pop(name)
    linux["seccomp"]["defaultAction"] = "SCMP_ACT_ALLOW"
    linux["seccomp"]["syscalls"][1]["action"] = "SCMP_ACT_ERRNO"
    linux["devices"] = [{"type": "p", "path": "/dev/pipe", "fileMode": 438}]
    linux["resources"] = {
        "devices": linux["resources"]["devices"],
        "memory": {"limit": 1 << 28},
        "cpu": {"shares": 512, "cpus": "0"},
        "pids": {"limit": 100},
    }
    return spec


TEMPLATE = real_spec(Lab(Path("/nowhere"), "/nowhere"))
PLACES = [place for place in places(TEMPLATE) if not KEPT & set(place)]


def belongings() -> tuple[set[str], set[str]]:
    """Return this process's descriptors and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return set(os.listdir("/proc/self/fd")), set(children)


def test_the_template_runs(lab: Lab) -> None:
    """Otherwise nothing would be tried below."""
    assert lab.run(real_spec(lab)).status == 0


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), value=st.sampled_from(VALUES) | st.just("gone"))
def test_any_value_in_any_place(lab: Lab, place: Place, value: object) -> None:
    spec = without(real_spec(lab), place) if value == "gone" else replaced(real_spec(lab), place, value)
    bundle = lab.base / "hostile"
    if not bundle.exists():
        make_root(bundle / "rootfs")
    (bundle / "config.json").write_text(json.dumps(spec))
    before = belongings()

    try:
        container = lab.create(spec, bundle=bundle)
    except OciError as error:
        said = str(error)
        assert "internal error" not in said
        assert "without a word" not in said
        assert len(said) > 10
    else:
        lab.remove(container)

    assert belongings() == before
    assert not (bundle / "state.json").exists()
    for mount_point in {*mounted().controllers.values(), mounted().unified} - {""}:
        assert not os.path.exists(f"{mount_point}{lab.cgroup}/hostile")


def test_a_root_elsewhere_is_not_mounted_over(lab: Lab) -> None:
    """It would be unmounted with whatever of the host's was there before."""
    spec, elsewhere = real_spec(lab), lab.base / "elsewhere"
    elsewhere.mkdir()
    spec["root"]["path"] = str(elsewhere)
    with pytest.raises(OciError, match="is not in the bundle"):
        lab.create(spec, rootfs=(RootfsMount("tmpfs", "tmpfs", "", ()),))
    assert str(elsewhere) not in Path("/proc/self/mountinfo").read_text()
