"""Which runtime a name stands for, and which versions are warned of."""

import asyncio
import os
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.errors import FailedPrecondition, InvalidArgument
from pyctr_wire.pyctr import runtime_pb2
from pyctrd.config.tables import Runtime
from pyctrd.offload import Offload
from pyctrd.runtime.runtime_versions import RuntimeVersions, judge, unsafe
from pyctrd.runtime.runtimes import Resolved, Runtimes

OPTIONS = "containerd.runc.v1.Options"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A $PATH with runc and crun in it."""
    for name in ("runc", "crun"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} version 1.2.3\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "text").write_text("no program")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def options(**fields: object) -> AnyMessage:
    return AnyMessage(type_url=OPTIONS, value=oci_pb2.Options(**fields).SerializeToString())  # type: ignore[arg-type]


def told(message: AnyMessage | None) -> runtime_pb2.RuntimeOptions:
    assert message is not None
    assert message.type_url == "pyctr.v1.RuntimeOptions"
    return runtime_pb2.RuntimeOptions.FromString(message.value)


@pytest.mark.parametrize(
    "name", ["io.containerd.runc.v2", "io.containerd.pyctr.v1", "/opt/bin/containerd-shim-pyctr-v1"]
)
def test_the_usual_shim_has_our_runtime_unless_another_one_is_named(programs: Path, name: str) -> None:
    runtimes = Runtimes({})
    plain, odd = options(systemd_cgroup=True), AnyMessage(type_url="x.y", value=b"z")
    assert runtimes.resolve(name) == Resolved(None)
    assert runtimes.resolve(name, plain) == Resolved(plain)
    assert runtimes.resolve(name, odd) == Resolved(odd)  # the shim refuses it
    found = runtimes.resolve(name, options(binary_name="crun", systemd_cgroup=True, root="/r"))
    assert found.program == f"{programs}/crun"
    runc = oci_pb2.Options(binary_name=f"{programs}/crun", systemd_cgroup=True, root="/r")
    assert told(found.options) == runtime_pb2.RuntimeOptions(runc=runc)


@pytest.mark.parametrize("name", ["runc", "/runc"])
def test_a_program_is_found_by_name_and_by_path(programs: Path, name: str) -> None:
    found = Runtimes({}).resolve(f"{programs}{name}" if name.startswith("/") else name)
    assert found.program == f"{programs}/runc"
    assert told(found.options).runc == oci_pb2.Options(binary_name=f"{programs}/runc")


def test_the_configuration_completes_what_the_client_says(programs: Path) -> None:
    configured = Runtime(path="runc", root="/states", systemd_cgroup=True, no_pivot_root=True, command_timeout=5)
    runtimes = Runtimes({"mine": configured, "io.example.odd.v2": configured})
    for name in ("mine", "io.example.odd.v2"):
        message = told(runtimes.resolve(name, options(io_uid=7)).options)
        assert message.command_seconds == 5
        assert message.runc == oci_pb2.Options(
            binary_name=f"{programs}/runc", root="/states", systemd_cgroup=True, no_pivot_root=True, io_uid=7
        )
    message = told(runtimes.resolve("io.containerd.runc.v2", options(binary_name="mine", root="/own")).options)
    assert (message.runc.root, message.runc.binary_name) == ("/own", f"{programs}/runc")


def test_a_shim_of_another_make_is_found_by_name_by_path_and_by_configuration(programs: Path) -> None:
    """It gets the options as they are; `io.containerd.runc.v2` is ours until the configuration says otherwise."""
    program = programs / "containerd-shim-kata-v2"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    usual, odd = "io.containerd.runc.v2", AnyMessage(type_url="x.y", value=b"z")
    for name in ("io.containerd.kata.v2", "org.example.some.kata.v2", str(program)):
        assert Runtimes({}).resolve(name, odd) == Resolved(odd, shim=str(program))
    runtimes = Runtimes({usual: Runtime(shim=str(program)), "mine": Runtime(shim="containerd-shim-kata-v2")})
    for name in (usual, "mine"):
        assert runtimes.resolve(name) == Resolved(None, shim=str(program))
    assert runtimes.resolve("io.containerd.pyctr.v1") == Resolved(None)


def test_a_name_may_stand_for_our_own(programs: Path) -> None:
    runtimes = Runtimes({"runc": Runtime(path="embedded", systemd_cgroup=True)})
    found = runtimes.resolve("io.containerd.runc.v2", options(binary_name="runc", io_uid=7))
    assert found.program == ""
    assert found.options is not None
    assert found.options.type_url == OPTIONS
    assert oci_pb2.Options.FromString(found.options.value) == oci_pb2.Options(io_uid=7, systemd_cgroup=True)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("", InvalidArgument, "a full path to the binary"),
        ("a/b", InvalidArgument, "a full path to the binary"),
        ("youki", FailedPrecondition, r"no program youki in \$PATH; install it, or name it in \[runtimes.youki\]"),
        ("/no/such", FailedPrecondition, "/no/such is no program"),
        ("lost", FailedPrecondition, "/no/lost is no program"),
        ("io.containerd.lost.v2", FailedPrecondition, r"no program containerd-shim-lost-v2 in \$PATH; install it"),
        ("/no/containerd-shim-lost-v2", FailedPrecondition, "/no/containerd-shim-lost-v2 is no program"),
        ("both", FailedPrecondition, "has both shim and path"),
        ("io.containerd.runtime.v1.linux", FailedPrecondition, "no program"),
    ],
)
def test_what_cannot_be_had_is_refused(programs: Path, name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Runtimes({"lost": Runtime(path="/no/lost"), "both": Runtime(path="runc", shim="runc")}).resolve(name)


def test_what_is_no_program_is_refused(programs: Path) -> None:
    with pytest.raises(FailedPrecondition, match="is no program"):
        Runtimes({}).resolve(f"{programs}/text")


def test_options_of_another_kind_are_refused(programs: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"its options are x\.y"):
        Runtimes({}).resolve("runc", AnyMessage(type_url="x.y"))
    with pytest.raises(InvalidArgument, match="do not decode"):
        Runtimes({}).resolve("runc", AnyMessage(type_url=OPTIONS, value=b"\xff\xff"))


@pytest.mark.parametrize(
    ("output", "safe"),
    [
        ("runc version 1.1.5+ds1\ncommit: 1.1.5", False),
        ("runc version 1.3.6", False),
        ("runc version 1.3.7", True),
        ("runc version 1.3.10", True),
        ("runc version 1.4.0", False),
        ("runc version 1.4.4\nspec: 1.3.0", True),
        ("runc version 1.5.2", False),
        ("runc version 1.5.3-rc.1", False),
        ("runc version 1.5.3", True),
        ("runc version 1.6.0-rc.1", True),
        ("runc version 2.0.0", True),
        ("crun version 1.8.1", False),
        ("crun version 1.29.1", False),
        ("crun version 1.29.1.0.0.0.7-4f3e", False),
        ("crun version 1.29.2", True),
        ("crun version 1.30", True),
        ("youki version 0.1", True),
        ("runsc version release-20240101.0", True),
        ("", True),
    ],
)
def test_versions(output: str, *, safe: bool) -> None:
    text = judge("/x/program", output)
    assert (text == "") is safe
    assert safe or "/x/program" in text


def test_what_does_not_tell_its_version_is_told(tmp_path: Path) -> None:
    assert "does not tell its version" in unsafe(f"{tmp_path}/nothing")


def test_a_program_is_asked_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    program = tmp_path / "runc"

    def install(version: str) -> None:
        program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho runc version {version}\n")
        program.chmod(0o755)

    def asked() -> int:
        return len((tmp_path / "asked").read_text().splitlines())

    async def main() -> None:
        disk = Offload(1)

        async def use() -> None:
            async with asyncio.TaskGroup() as group:
                versions._group = group
                versions.used(str(program))

        async with asyncio.TaskGroup() as group:
            versions = RuntimeVersions(disk, group)
        install("1.1.5")
        for _ in range(3):
            await use()
        assert asked() == 1
        assert [warned.program for warned in versions.warnings] == [str(program)]
        install("1.5.30")
        os.utime(program, (1, 1))
        await use()
        assert asked() == 2
        assert versions.warnings == ()
        versions.used(f"{tmp_path}/gone")
        disk.close()

    asyncio.run(main())
