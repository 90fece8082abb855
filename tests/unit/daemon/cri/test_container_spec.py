"""What a pod's place says of its containers' cgroups."""

import pytest

from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.cri import image_pb2
from pyctrd.cri import container_spec
from pyctrd.cri.records import Pod


@pytest.mark.parametrize(
    ("parent", "path", "systemds"),
    [
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:id", True),
        ("kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:id", True),
        ("/kubepods/pod1", "/kubepods/pod1/id", False),
        ("/kubepods.slice/plain", "/kubepods.slice/plain/id", False),
        ("", "/k8s.io/id", False),
    ],
)
def test_what_is_in_a_slice_is_systemds_to_make(parent: str, path: str, systemds: bool) -> None:
    config = image_pb2.PodSandboxConfig()
    config.linux.cgroup_parent = parent

    assert container_spec.cgroup_path(parent, "id") == path
    found = container_spec.task_options(Pod("pod", config, "", 0))

    assert (found is not None) == systemds
    if found is not None:
        assert oci_pb2.Options.FromString(found.value).systemd_cgroup
