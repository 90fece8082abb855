"""Limits of huge pages."""

from pyctr_wire.cri import image_pb2
from pyctrd.cri.container_spec import resources


def test_limits_of_huge_pages_are_for_kernels_that_have_them() -> None:
    limits = image_pb2.LinuxContainerResources(cpu_shares=2)
    limits.hugepage_limits.add(page_size="2MB", limit=0)
    assert resources(limits, hugepages=False) == {"cpu": {"shares": 2}}
    assert resources(limits, hugepages=True)["hugepageLimits"] == [{"pageSize": "2MB", "limit": 0}]
