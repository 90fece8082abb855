"""Options that clients send: taken, refused by name, or meaningless here; never ignored."""

import pytest
from google.protobuf import any_pb2

from pyctr_shim.task_service import read_options
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.errors import InvalidArgument
from pyctr_wire.pyctr import runtime_pb2

NAME = "containerd.runc.v1.Options"


def packed(type_url: str = NAME, **options: object) -> any_pb2.Any:
    return any_pb2.Any(type_url=type_url, value=oci_pb2.Options(**options).SerializeToString())  # type: ignore[arg-type]


def test_no_options_are_the_defaults() -> None:
    assert read_options(any_pb2.Any()) == (oci_pb2.Options(), None)


@pytest.mark.parametrize("type_url", [NAME, f"type.googleapis.com/{NAME}"])
def test_options_that_we_honour_are_taken(type_url: str) -> None:
    options, program = read_options(packed(type_url, no_pivot_root=True, io_uid=7, root="/run/runc", shim_cgroup="/x"))
    assert program is None
    assert (options.no_pivot_root, options.io_uid, options.shim_cgroup) == (True, 7, "/x")


def test_another_runtime_is_named_by_its_program() -> None:
    options, program = read_options(packed(binary_name="crun", root="/run/x", no_new_keyring=True))
    assert program == ("crun", "/run/x", 30.0)
    assert options.no_new_keyring


def test_the_daemon_says_what_a_command_may_take() -> None:
    told = runtime_pb2.RuntimeOptions(runc=oci_pb2.Options(binary_name="/x", io_uid=3), command_seconds=2.5)
    options, program = read_options(any_pb2.Any(type_url="pyctr.v1.RuntimeOptions", value=told.SerializeToString()))
    assert program == ("/x", "", 2.5)
    assert options.io_uid == 3


@pytest.mark.parametrize(
    "options", [packed("runtimeoptions.v1.Options"), any_pb2.Any(type_url=NAME, value=b"\xff\xff\xff")]
)
def test_options_of_another_runtime_are_refused(options: any_pb2.Any) -> None:
    with pytest.raises(InvalidArgument):
        read_options(options)
