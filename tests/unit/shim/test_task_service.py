"""Options that clients send: taken, refused by name, or meaningless here; never ignored."""

from typing import Any

import pytest
from google.protobuf import any_pb2

from pyctr_shim.task_service import read_options
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.errors import InvalidArgument, Unimplemented

NAME = "containerd.runc.v1.Options"


def packed(type_url: str = NAME, **options: object) -> any_pb2.Any:
    return any_pb2.Any(type_url=type_url, value=oci_pb2.Options(**options).SerializeToString())  # type: ignore[arg-type]


def test_no_options_are_the_defaults() -> None:
    assert read_options(any_pb2.Any()) == oci_pb2.Options()


@pytest.mark.parametrize("type_url", [NAME, f"type.googleapis.com/{NAME}"])
def test_options_that_we_honour_are_taken(type_url: str) -> None:
    options = read_options(packed(type_url, no_pivot_root=True, io_uid=7, root="/run/runc", shim_cgroup="/x"))
    assert (options.no_pivot_root, options.io_uid, options.shim_cgroup) == (True, 7, "/x")


@pytest.mark.parametrize(
    ("option", "value"),
    [("binary_name", "crun")],
)
def test_options_that_we_cannot_honour_are_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(Unimplemented, match=option):
        read_options(packed(**{option: value}))


@pytest.mark.parametrize(
    "options", [packed("runtimeoptions.v1.Options"), any_pb2.Any(type_url=NAME, value=b"\xff\xff\xff")]
)
def test_options_of_another_runtime_are_refused(options: any_pb2.Any) -> None:
    with pytest.raises(InvalidArgument):
        read_options(options)
