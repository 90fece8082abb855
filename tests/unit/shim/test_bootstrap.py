"""What the cold start understands: Go's flags, and the parameters of every containerd release."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import pytest

import pyctr_shim
from pyctr_shim import bootstrap
from pyctr_shim.__main__ import UsageError, parse
from pyctr_wire.containerd.runtime.bootstrap.v1 import bootstrap_pb2
from pyctr_wire.containerd.types import introspection_pb2
from pyctr_wire.containerd.types.runc.options import oci_pb2

FLAGS = bootstrap.Flags(namespace="ns", address="/run/c.sock", id="c1", debug=False)


def test_flags_are_gos() -> None:
    flags, words = parse(["-namespace", "ns", "--address=/a", "-id=c", "-publish-binary", "/b", "-debug", "start"])
    assert flags == {"namespace": "ns", "address": "/a", "id": "c", "publish-binary": "/b", "debug": "true"}
    assert words == ["start"]


@pytest.mark.parametrize("arguments", [["-nonsense"], ["-id"]])
def test_unknown_and_incomplete_flags_are_refused(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(arguments)


def test_parameters_of_containerd_2_3_come_typed() -> None:
    params = bootstrap_pb2.BootstrapParams(
        instance_id="c2",
        namespace="other",
        containerd_version="2.3.4",
        containerd_grpc_address="/g",
        containerd_ttrpc_address="/t",
        socket_dir="/run/x",
    )
    found = bootstrap.read_parameters(FLAGS, params.SerializeToString())
    assert found == bootstrap.Parameters("c2", "other", "/g", "/t", "/run/x", typed=True)


@pytest.mark.parametrize("options", [b"", oci_pb2.Options(binary_name="runc").SerializeToString(), b"\xff\xff"])
def test_older_ones_send_flags_and_environment_whatever_is_on_stdin(
    options: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTRPC_ADDRESS", "/run/c.sock.ttrpc")
    found = bootstrap.read_parameters(FLAGS, options)
    assert found == bootstrap.Parameters(
        "c1", "ns", "/run/c.sock", "/run/c.sock.ttrpc", "/run/containerd/s", typed=False
    )


def test_a_bare_any_that_decodes_as_parameters_is_not_taken_for_them() -> None:
    any_bytes = bootstrap_pb2.BootstrapParams(
        instance_id="containerd.runc.v1.Options", namespace="x"
    ).SerializeToString()
    assert not bootstrap.read_parameters(FLAGS, any_bytes).typed


def test_the_socket_is_where_containerd_expects_it() -> None:
    parameters = bootstrap.Parameters("c1", "ns", "/run/c.sock", "", "/run/containerd/s", typed=False)
    name = hashlib.sha256(b"/run/c.sock/ns/c1").hexdigest()
    assert bootstrap.socket_path(parameters, "c1") == f"/run/containerd/s/{name}"


def test_the_answer_is_in_the_daemons_form(tmp_path: Path) -> None:
    parameters = bootstrap.Parameters("c1", "ns", "/g", "/t", "/s", typed=False)
    assert bootstrap.answer(parameters, tmp_path, "/s/x") == b"unix:///s/x"
    assert (tmp_path / "address").read_text() == "unix:///s/x"
    typed = bootstrap.answer(parameters._replace(typed=True), tmp_path, "/s/x")
    result = bootstrap_pb2.BootstrapResult.FromString(typed)
    assert (result.version, result.address, result.protocol) == (3, "unix:///s/x", "ttrpc")


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        ({}, ""),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}, "g"),
    ],
)
def test_containers_of_a_group_share_a_shim(tmp_path: Path, annotations: dict[str, str], group: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"annotations": annotations}))
    assert bootstrap.group_of(tmp_path) == group


def test_a_bundle_without_a_spec_has_no_group(tmp_path: Path) -> None:
    assert bootstrap.group_of(tmp_path) == ""


def test_the_version_is_the_distributions() -> None:
    assert version("pyctr") == pyctr_shim.VERSION
    info = introspection_pb2.RuntimeInfo.FromString(bootstrap.info())
    assert (info.name, info.version.version) == ("io.containerd.pyctr.v1", pyctr_shim.VERSION)
    assert "mount" in json.loads(info.features.value)["linux"]["namespaces"]
