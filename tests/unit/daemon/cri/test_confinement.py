"""Which AppArmor profile a pod's container has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctrd.cri.confinement import apparmor_profile
from pyctrd.runtime.apparmor import POD_DEFAULT
from support.staged_kernel import StagedKernel

Security = runtime_pb2.LinuxContainerSecurityContext
Profile = image_pb2.SecurityProfile

NOTHING = Security()
BY_TYPE = Security(apparmor=Profile(profile_type=image_pb2.SecurityProfile.RuntimeDefault))
BY_TEXT = Security(apparmor_profile="runtime/default")
LOCAL = Security(apparmor=Profile(profile_type=image_pb2.SecurityProfile.Localhost, localhost_ref="of-the-node"))
LOCAL_BY_TEXT = Security(apparmor_profile="localhost/of-the-node")
FREE = Security(apparmor=Profile(profile_type=image_pb2.SecurityProfile.Unconfined))
FREE_BY_TEXT = Security(apparmor_profile="unconfined")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[StagedKernel]:
    with StagedKernel(tmp_path) as staged:
        yield staged


@pytest.mark.parametrize(
    ("security", "profile"),
    [
        (NOTHING, POD_DEFAULT),
        (BY_TYPE, POD_DEFAULT),
        (BY_TEXT, POD_DEFAULT),
        (LOCAL, "of-the-node"),
        (LOCAL_BY_TEXT, "of-the-node"),
        (FREE, ""),
        (FREE_BY_TEXT, ""),
        (Security(apparmor=FREE.apparmor, apparmor_profile="runtime/default"), ""),
        (Security(privileged=True), ""),
        (Security(privileged=True, apparmor_profile="localhost/of-the-node"), ""),
    ],
)
def test_whose_profile_it_is(kernel: StagedKernel, security: Security, profile: str) -> None:
    assert apparmor_profile(security, kernel.apparmor) == profile


@pytest.mark.parametrize("security", [NOTHING, BY_TYPE, BY_TEXT])
def test_where_apparmor_is_off_the_default_is_passed_over(kernel: StagedKernel, security: Security) -> None:
    kernel.enabled.write_text("N\n")
    assert apparmor_profile(security, kernel.apparmor) == ""


@pytest.mark.parametrize("security", [LOCAL, LOCAL_BY_TEXT])
def test_where_apparmor_is_off_a_nodes_profile_is_refused(kernel: StagedKernel, security: Security) -> None:
    kernel.enabled.write_text("N\n")
    with pytest.raises(FailedPrecondition, match=r"^apparmor profile of-the-node: AppArmor is turned off"):
        apparmor_profile(security, kernel.apparmor)


def test_without_a_parser_the_default_is_for_whom_asks_for_nothing_to_miss(kernel: StagedKernel) -> None:
    kernel.parser.unlink()
    assert apparmor_profile(NOTHING, kernel.apparmor) == ""
    for security in (BY_TYPE, BY_TEXT):
        with pytest.raises(FailedPrecondition, match=rf"{POD_DEFAULT}: .* install the package apparmor"):
            apparmor_profile(security, kernel.apparmor)


def test_a_profile_that_the_node_lacks_is_refused(kernel: StagedKernel) -> None:
    with pytest.raises(FailedPrecondition, match=r"^apparmor profile not found of-another"):
        apparmor_profile(Security(apparmor_profile="localhost/of-another"), kernel.apparmor)
    with pytest.raises(InvalidArgument, match="no-kind"):
        apparmor_profile(Security(apparmor_profile="no-kind"), kernel.apparmor)
