"""Numbers that are no value of their enumeration, quantities that are no number, and rows that others have written."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyctr_wire.cri import image_pb2, runtime_pb2
from pyctr_wire.errors import InvalidArgument, NotFound
from pyctr_wire.oci.image_spec import ImageConfig, Platform
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.sandboxes import Sandbox
from pyctrd.cri import container_spec, creation, pod_network, records
from pyctrd.cri.records import Pod
from pyctrd.cri.sandboxes import check_user_namespace
from pyctrd.late_cri import CriParts, _container, _pod, _read
from pyctrd.sandbox.files import SandboxFiles

_POD = '{"handler":"","created_at":%s,"ready":true,"addresses":%s}'


def test_numbers_without_a_name_are_refused() -> None:
    options = image_pb2.NamespaceOption(userns_options=image_pb2.UserNamespace(mode=77))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="77"):
        check_user_namespace(options)
    config = runtime_pb2.ContainerConfig(stop_signal=-7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="-7"):
        creation._stop_signal(config, ImageConfig(Platform("linux", "amd64"), ()))
    security = runtime_pb2.LinuxContainerSecurityContext(
        seccomp=image_pb2.SecurityProfile(profile_type=77)  # type: ignore[arg-type]
    )
    with pytest.raises(InvalidArgument, match="77"):
        container_spec._seccomp(security, None, ())  # type: ignore[arg-type]
    assert pod_network._protocol(77) == "77"  # type: ignore[arg-type]


def test_a_bandwidth_without_end_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="bandwidth"):
        pod_network._bits("9" * 400)


@pytest.mark.parametrize(
    "state",
    [
        _POD % ("1e999", "[]"), _POD % (10**30, "[]"), _POD % (1, "[5]"), _POD % (1, '["a"') , "[" * 100_000, "[]", "5",
    ],
)  # fmt: skip
def test_a_pod_that_nobody_can_read_is_passed_over(state: str) -> None:
    extensions = {records._POD_STATE: AnyValue("", state.encode())}
    row = Sandbox("pod", spec=AnyValue("", b""), extensions=extensions)

    assert _read("pod", "pod", _pod, row) is None


@pytest.mark.parametrize("moment", ["1e999", str(10**30)])
def test_a_container_that_nobody_can_read_is_passed_over(moment: str) -> None:
    state = (
        '{"image":["","",""],"created_at":1,"user":[0,0,[]],"stop_signal":15,"started_at":1,'
        f'"finished_at":{moment},"exit_code":0,"reason":"","message":""}}'
    )
    extensions = {records.CONTAINER_STATE: AnyValue("", state.encode()), records._CONTAINER_CONFIG: AnyValue("", b"")}
    pod = Pod("pod", image_pb2.PodSandboxConfig(), "", 0)

    assert _read("container", "c", _container, Container("c", extensions=extensions), pod) is None


def test_a_file_among_the_pods_directories_stops_no_start(tmp_path: Path) -> None:
    def get(*_: str) -> None:
        raise NotFound("sandbox")

    (tmp_path / "stray").touch()
    stores = SimpleNamespace(sandboxes=SimpleNamespace(get=get))
    parts: Any = SimpleNamespace(_stores=stores, _files=SandboxFiles(tmp_path / "root", tmp_path))

    CriParts._sweep(parts, "stray")

    assert (tmp_path / "stray").exists()
