"""F02 and the restore rules: a checkpoint is cut off half-way, refused, or made by somebody who means harm."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pyctr_wire.containerd.services.content.v1 import content_pb2, content_pb2_grpc
from pyctr_wire.containerd.services.leases.v1 import leases_pb2, leases_pb2_grpc
from pyctr_wire.containerd.services.tasks.v1 import tasks_pb2, tasks_pb2_grpc
from pyctr_wire.containerd.types import descriptor_pb2
from pyctr_wire.containerd.types.runc.options import oci_pb2
from pyctr_wire.containerd.types.task import task_pb2 as types
from support.containers import NAMESPACE, Containers
from support.criu import require_criu
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.footprint import unchanged

pytestmark = [pytest.mark.root, pytest.mark.timeout(120), pytest.mark.usefixtures("leaving_nothing")]

TAR = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
COUNT = "i=0; while true; do i=$((i+1)); echo $i > /tmp/next; busybox mv /tmp/next /tmp/count; sleep 0.05; done"
LEASE = "saved"
HEADERS = (("containerd-namespace", NAMESPACE),)


class Slow:
    """A `criu` that tells when it is called, and goes on when it is let."""

    def __init__(self, directory: Path) -> None:
        """Put it into an empty directory, which is then for PATH."""
        real = shutil.which("criu")
        self.directory = directory
        self._called, self._gate = directory / "called", directory / "gate"
        script = f'#!/bin/sh\n: > {self._called}\nwhile [ -e {self._gate} ]; do sleep 0.05; done\nexec {real} "$@"\n'
        (directory / "criu").write_text(script)
        (directory / "criu").chmod(0o755)

    def hold(self) -> None:
        """Keep the next ones waiting."""
        self._called.unlink(missing_ok=True)
        self._gate.touch()

    def wait(self) -> None:
        """Return when one waits."""
        wait_until(self._called.exists, "criu has been called")

    def let_go(self) -> None:
        """Let all go on."""
        self._gate.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    with pytest.MonkeyPatch.context() as patch:
        require_criu(patch)
        made = Slow(tmp_path_factory.mktemp("criu"))
        patch.setenv("PATH", str(made.directory), prepend=os.pathsep)
        yield made


@pytest.fixture(scope="module")
def daemon(slow: Slow) -> Iterator[DaemonProcess]:
    with DaemonProcess(config="[checkpoint]\nenabled = true\n") as process:
        yield process


@pytest.fixture
def containers(daemon: DaemonProcess, slow: Slow) -> Iterator[Containers]:
    with Containers(daemon) as client:
        yield client
        slow.let_go()
        daemon.ctr("leases", "rm", LEASE, check=False)
        folder = daemon.root / "checkpoints"
        wait_until(lambda: not folder.exists() or os.listdir(folder) == [], "no checkpoint is under way")


def run(containers: Containers, id: str) -> int:
    pid = containers.run(id, "sh", "-c", COUNT)
    wait_until(lambda: count(pid) > 3, "the container counts")
    return pid


def count(pid: int) -> int:
    """Return how far a container has counted, 0 if that cannot be read now."""
    try:
        return int(Path(f"/proc/{pid}/root/tmp/count").read_text() or 0)
    except (OSError, ValueError):
        return 0


def assert_goes_on(containers: Containers, id: str, pid: int) -> None:
    """Check that a container runs as if nothing had been."""
    assert containers.status(id) == types.RUNNING
    before = count(pid)
    wait_until(lambda: count(pid) > before, "the container counts on")


def checkpoint_of(id: str, **options: object) -> tasks_pb2.CheckpointTaskRequest:
    request = tasks_pb2.CheckpointTaskRequest(container_id=id)
    request.options.type_url = "containerd.runc.v1.CheckpointOptions"
    request.options.value = oci_pb2.CheckpointOptions(**options).SerializeToString()  # type: ignore[arg-type]
    return request


def store(containers: Containers, data: bytes) -> descriptor_pb2.Descriptor:
    """Put a blob into the content store and return a checkpoint's descriptor of it."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    request = content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref=digest, total=len(data), expected=digest, data=data
    )
    request.labels["containerd.io/gc.root"] = "test"
    stub = content_pb2_grpc.ContentStub(containers.channel)
    list(stub.Write(iter([request]), metadata=HEADERS, timeout=DEADLINE))
    return descriptor_pb2.Descriptor(media_type=TAR, digest=digest, size=len(data))


def read(containers: Containers, digest: str) -> bytes:
    stub = content_pb2_grpc.ContentStub(containers.channel)
    request = content_pb2.ReadContentRequest(digest=digest)
    return b"".join(part.data for part in stub.Read(request, metadata=HEADERS, timeout=DEADLINE))


def forget(containers: Containers, *digests: str) -> None:
    stub = content_pb2_grpc.ContentStub(containers.channel)
    for digest in digests:
        stub.Delete(content_pb2.DeleteContentRequest(digest=digest), metadata=HEADERS, timeout=DEADLINE)


def saved(containers: Containers, id: str, **options: object) -> list[descriptor_pb2.Descriptor]:
    """Save a container as content, which is kept by a lease until `forget`."""
    leases = leases_pb2_grpc.LeasesStub(containers.channel)
    with suppress(grpc.RpcError):
        leases.Create(leases_pb2.CreateRequest(id=LEASE), metadata=HEADERS, timeout=DEADLINE)
    stub = tasks_pb2_grpc.TasksStub(containers.channel)
    headers = (*HEADERS, ("containerd-lease", LEASE))
    return list(stub.Checkpoint(checkpoint_of(id, **options), metadata=headers, timeout=DEADLINE).descriptors)


def test_saved_content_is_what_containerd_makes(containers: Containers) -> None:
    pid = run(containers, "c1")

    processes, config = saved(containers, "c1")

    assert (processes.media_type, config.media_type) == (TAR, CONFIG)
    data = read(containers, processes.digest)
    assert len(data) == processes.size
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert "inventory.img" in archive.getnames()
    spec = json.loads(read(containers, config.digest).partition(b"{")[2].join((b"{", b"")) or b"{}")
    assert spec["process"]["args"][-1] == COUNT
    assert_goes_on(containers, "c1", pid)
    forget(containers, processes.digest, config.digest)


@pytest.mark.parametrize("exits", [False, True])
def test_a_daemon_that_is_killed_leaves_the_container_as_it_is(
    containers: Containers, daemon: DaemonProcess, slow: Slow, exits: bool
) -> None:
    pid = run(containers, "c1")
    slow.hold()
    call = containers.future("Checkpoint", checkpoint_of("c1", exit=exits))
    slow.wait()

    daemon.kill()
    slow.let_go()
    daemon.start()

    assert isinstance(call.exception(), grpc.RpcError)
    wait_until(lambda: not dumping(pid), "nobody saves it any more")
    assert_goes_on(containers, "c1", pid)
    assert [descriptor.media_type for descriptor in saved(containers, "c1", exit=exits)] == [TAR, CONFIG]


def dumping(pid: int) -> bool:
    """Whether a process is being saved: traced, or somebody about to."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "comm").read_text().strip() in {"pyctr-dump", "criu"}:
                    return True
            except OSError:
                continue
    return not Path(f"/proc/{pid}").exists()


def test_a_client_that_goes_away_does_not_cost_the_container_its_life(containers: Containers, slow: Slow) -> None:
    pid = run(containers, "c1")
    slow.hold()
    call = containers.future("Checkpoint", checkpoint_of("c1", exit=True))
    slow.wait()

    call.cancel()
    folder = containers.daemon.root / "checkpoints"
    wait_until(lambda: os.listdir(folder) == [], "the daemon has given up")
    slow.let_go()

    wait_until(lambda: not dumping(pid), "nobody saves it any more")
    assert_goes_on(containers, "c1", pid)


def test_what_cannot_be_saved_says_so(containers: Containers) -> None:
    containers.define("c1", "sleep", "1000")
    containers.create("c1")
    with pytest.raises(grpc.RpcError, match="cannot checkpoint a task in created state"):
        saved(containers, "c1")
    with pytest.raises(grpc.RpcError, match='container "absent"'):
        saved(containers, "absent")
    containers.start("c1")
    with pytest.raises(grpc.RpcError, match="cgroups mode 'odd' is none of"):
        saved(containers, "c1", cgroups_mode="odd")


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def test_cve_2026_53489_over_the_api(containers: Containers, tmp_path: Path) -> None:
    """A log in the archive that is a link to the host's file is not followed: nothing is restored."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        link = tarfile.TarInfo("container.log")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        file.addfile(link)
    evil = store(containers, buffer.getvalue())
    containers.define("c1", "sleep", "1000")

    with pytest.raises(grpc.RpcError, match=r"'container\.log' is not a plain file") as caught:
        containers.create("c1", checkpoint=evil)

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    forget(containers, evil.digest)


@pytest.mark.parametrize("data", [b"", b"no archive" * 100, archive(readme=b"x"), archive(inventory__img=b"x")])
def test_what_is_no_checkpoint_leaves_nothing(containers: Containers, data: bytes) -> None:
    descriptor = store(containers, data)
    containers.define("c1", "sleep", "1000")

    with pytest.raises(grpc.RpcError):
        containers.create("c1", checkpoint=descriptor)

    assert containers.task_ids() == []
    forget(containers, descriptor.digest)


def test_cve_2026_53492(containers: Containers) -> None:
    """What a checkpoint's descriptor or files say of devices and mounts is nobody's business: the record counts."""
    run(containers, "c1")
    processes, config = saved(containers, "c1", exit=True)
    containers.remove("c1")
    processes.annotations["cdi.k8s.io/evil"] = "vendor.com/device=all"
    processes.annotations["io.kubernetes.cri.mounts"] = "/etc:/etc"
    containers.define("c1", "sh", "-c", COUNT)

    pid = containers.create("c1", checkpoint=processes)
    containers.start("c1")

    assert_goes_on(containers, "c1", pid)
    mounted = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    wanted = {"/", *(item["destination"] for item in containers.spec("c1", "true")["mounts"])}
    assert {path for path in mounted if not path.startswith(("/proc/", "/sys/", "/dev/"))} <= wanted
    forget(containers, processes.digest, config.digest)


def test_cve_2026_95837_over_the_api(containers: Containers) -> None:
    """A container that ran with capabilities is not restored into a record without."""
    capabilities = ["CAP_CHOWN", "CAP_KILL"]
    spec = containers.spec("c1", "sh", "-c", COUNT)
    more = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    containers.define("c1", "sh", "-c", COUNT, process=spec["process"] | {"capabilities": more})
    pid = containers.create("c1")
    containers.start("c1")
    wait_until(lambda: count(pid) > 3, "the container counts")
    processes, config = saved(containers, "c1", exit=True)
    containers.remove("c1")
    less = {kind: ["CAP_CHOWN"] for kind in more}
    containers.define("c1", "sh", "-c", COUNT, process=spec["process"] | {"capabilities": less})

    with pytest.raises(grpc.RpcError, match=r"has CAP_KILL, which process\.capabilities does not give"):
        containers.create("c1", checkpoint=processes)

    assert containers.task_ids() == []
    forget(containers, processes.digest, config.digest)


def test_a_restored_container_may_be_deleted_before_its_start(containers: Containers) -> None:
    run(containers, "c1")
    processes, config = saved(containers, "c1", exit=True)
    containers.remove("c1")
    containers.define("c1", "sh", "-c", COUNT)

    pid = containers.create("c1", checkpoint=processes)

    assert containers.status("c1") == types.CREATED
    containers.delete("c1")
    assert not Path(f"/proc/{pid}").exists()
    forget(containers, processes.digest, config.digest)


def test_a_restored_container_may_be_killed_before_its_start(containers: Containers) -> None:
    run(containers, "c1")
    processes, config = saved(containers, "c1", exit=True)
    containers.remove("c1")
    containers.define("c1", "sh", "-c", COUNT)
    containers.create("c1", checkpoint=processes)

    containers.kill("c1")

    assert containers.wait("c1").status == 128 + 9
    containers.delete("c1")
    forget(containers, processes.digest, config.digest)


def test_off_by_default() -> None:
    """Whatever would save or restore names the key that allows it."""
    with DaemonProcess() as daemon, unchanged(daemon), Containers(daemon) as containers:
        containers.run("c1", "sleep", "1000")
        containers.define("c2", "sleep", "1000")
        options = oci_pb2.Options(criu_image_path="/nowhere")
        blob = descriptor_pb2.Descriptor(media_type=TAR, digest=f"sha256:{'0' * 64}", size=1)
        packed = {"type_url": "containerd.runc.v1.Options", "value": options.SerializeToString()}
        for call in (
            lambda: containers.tasks("Checkpoint", checkpoint_of("c1")),
            lambda: containers.create("c2", checkpoint=blob),
            lambda: containers.create("c2", options=packed),
        ):
            with pytest.raises(grpc.RpcError, match=r"enabled = true in \[checkpoint\]") as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
