"""A real registry and real clients: pull, push, import and export, by the services and by the clients themselves."""

import gzip
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from pyctr_wire.containerd.types.transfer import imagestore_pb2, registry_pb2
from support import peers
from support.daemon_process import DaemonProcess
from support.images import BuiltImage, busybox, digest, image, index, write_layout
from support.pyctr_command import Pyctr
from support.registry_process import running_registry
from support.transfer_client import TransferClient

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (Debian package skopeo)"),
]

# bcrypt of "secret", for the user "me".
HTPASSWD = "me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with busybox for amd64 as v1, and with an arm64 image and an attestation beside it as multi."""
    directory = tmp_path_factory.mktemp("registry")
    write_layout(directory / "layout", {"v1": IMAGE, "multi": MULTI})
    return directory


IMAGE: BuiltImage = busybox(Cmd=["/bin/sh"])
ARM = image({"bin/sh": b"arm"}, architecture="arm64")
ATTESTATION = image({"statement": b"{}"}, architecture="unknown")
MULTI = ((ARM, "arm64"), (IMAGE, "amd64"), (ATTESTATION, "unknown"))


@pytest.fixture(scope="module")
def registry(directory: Path) -> Iterator[str]:
    """A registry with test/busybox:v1 and test/busybox:multi."""
    with running_registry(directory) as address:
        for tag in ("v1", "multi"):
            skopeo("copy", "--all", f"oci:{directory}/layout:{tag}", f"docker://{address}/test/busybox:{tag}")
        yield address


@pytest.fixture(scope="module")
def running() -> Iterator[DaemonProcess]:
    with DaemonProcess() as daemon:
        yield daemon


@pytest.fixture
def daemon(running: DaemonProcess) -> Iterator[DaemonProcess]:
    """The daemon, with nothing in it before and after: content that nothing refers to goes with its image."""
    yield running
    for name in running.ctr("images", "ls", "-q").split():
        running.ctr("images", "rm", "--sync", name)
    assert running.ctr("content", "ls", "-q") == running.ctr("leases", "ls", "-q") == ""
    assert len(running.ctr("snapshots", "ls").splitlines()) == 1


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[TransferClient]:
    with daemon.channel() as channel:
        yield TransferClient(channel)


def skopeo(*arguments: str) -> str:
    command = ["skopeo", *arguments]
    if "copy" in arguments:
        command += ["--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"]
    else:
        command += ["--tls-verify=false"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def say_hello(daemon: DaemonProcess, name: str) -> str:
    """Run a container of an image and return what it says."""
    return daemon.ctr("run", "--rm", name, f"test-{os.urandom(4).hex()}", "/bin/busybox", "cat", "/etc/hello")


def test_debians_ctr_pulls_runs_and_pushes(daemon: DaemonProcess, registry: str) -> None:
    """ctr 1.6 talks to the registry itself, and stores by content, diff, snapshots and images."""
    name = f"{registry}/test/busybox:v1"

    daemon.ctr("images", "pull", "--plain-http", name)
    assert say_hello(daemon, name) == "hello\n"
    daemon.ctr("images", "push", "--plain-http", f"{registry}/by/ctr:v1", name)

    assert IMAGE.digest in skopeo("inspect", f"docker://{registry}/by/ctr:v1")


def test_a_pulled_image_is_complete_to_other_clients(
    daemon: DaemonProcess, registry: str, client: TransferClient
) -> None:
    name = f"{registry}/test/busybox:multi"

    client.pull(name)

    assert say_hello(daemon, name) == "hello\n"
    [checked] = [line for line in daemon.ctr("images", "check").splitlines() if name in line]
    assert re.search(r"complete \(3/3\).*true", checked)
    events = [report.event for report in client.progress]
    assert events[0] == f"Resolving from OCI Registry ({name})"
    assert events[-2:] == ["saved", f"Completed pull from OCI Registry ({name})"]


def test_what_is_pushed_can_be_had_by_others(registry: str, client: TransferClient) -> None:
    name, pushed = f"{registry}/test/busybox:v1", f"{registry}/by/us:v2"
    client.pull(name)

    client.push(name, pushed)

    assert IMAGE.digest in skopeo("inspect", f"docker://{pushed}")
    assert client.progress[-1].event == f"Completed push to OCI Registry ({pushed})"


def test_our_command_line_warns_of_an_image_for_another_platform(daemon: DaemonProcess, registry: str) -> None:
    name = f"{registry}/test/busybox:v1"

    pulled = Pyctr(daemon).run("image", "pull", "--platform", "linux/arm64", name)

    assert (pulled.returncode, pulled.stdout) == (0, f"{name}\n")
    assert pulled.stderr == f"pyctr: warning: {name} is for linux/amd64, not for linux/arm64\n"


@pytest.mark.parametrize("command", [("image", "pull"), ("content", "fetch"), ("create",)], ids=" ".join)
def test_our_command_line_pulls_what_runs_on_the_daemons_machine(
    daemon: DaemonProcess, directory: Path, registry: str, command: tuple[str, ...]
) -> None:
    """Nothing else is asked for: a registry may well list what it does not have."""
    name, pyctr = f"{registry}/test/partial:{command[-1]}", Pyctr(daemon)
    skopeo("copy", "--all", f"oci:{directory}/layout:multi", f"docker://{name}")
    for missing in (ARM, ATTESTATION):
        url = f"http://{registry}/v2/test/partial/manifests/{missing.digest}"
        urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()

    made = pyctr(*command, name).strip()

    assert set(pyctr("content", "ls", "-q").split()) == {digest(index(*MULTI)), *IMAGE.blobs}
    if command == ("create",):
        pyctr("rm", made)


def test_our_command_line_pushes_what_it_has_pulled(daemon: DaemonProcess, registry: str) -> None:
    name, pushed, pyctr = f"{registry}/test/busybox:multi", f"{registry}/by/pyctr:v1", Pyctr(daemon)
    pyctr("image", "pull", name)

    done = pyctr.run("image", "push", name, pushed)

    assert (done.returncode, done.stdout) == (0, f"{pushed}\n")
    assert f"warning: only linux/amd64 of {name} is here, and pushed without linux/arm64, attest" in done.stderr
    assert IMAGE.digest in skopeo("inspect", f"docker://{pushed}")


def test_our_command_line_pulls_all_platforms_if_it_is_told_to(daemon: DaemonProcess, registry: str) -> None:
    name, pyctr = f"{registry}/test/busybox:multi", Pyctr(daemon)

    pyctr("image", "pull", "--all-platforms", name)

    everything = {digest(index(*MULTI)), *IMAGE.blobs, *ARM.blobs, *ATTESTATION.blobs}
    assert set(pyctr("content", "ls", "-q").split()) == everything
    assert len(pyctr("snapshot", "ls", "--format", "{{.Key}}").split()) == len(IMAGE.layers)
    both = pyctr.run("image", "pull", "--all-platforms", "--platform", "linux/amd64", name)
    assert (both.returncode, "exclude each other" in both.stderr) == (1, True)


def test_a_tag_that_is_not_there(registry: str, client: TransferClient) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        client.pull(f"{registry}/test/busybox:missing")

    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_what_we_export_is_read_by_others_and_by_us(
    daemon: DaemonProcess, registry: str, client: TransferClient, tmp_path: Path
) -> None:
    name, other = f"{registry}/test/busybox:v1", "example.com/other:v2"
    client.pull(name)
    daemon.ctr("images", "tag", name, other)
    archive = tmp_path / "archive.tar"

    archive.write_bytes(client.save(name, other))

    assert IMAGE.digest in skopeo("inspect", f"oci-archive:{archive}:v2")
    assert digest(gzip.decompress(IMAGE.layers[1])) in skopeo("inspect", f"docker-archive:{archive}:{other}")
    daemon.ctr("images", "rm", "--sync", name, other)
    daemon.ctr("images", "import", str(archive))
    assert say_hello(daemon, other) == "hello\n"
    daemon.ctr("images", "rm", "--sync", name, other)
    client.load(archive.read_bytes(), extra_references=[ANY_NAME], unpacks=[OVERLAY])
    assert say_hello(daemon, other) == "hello\n"


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_what_docker_would_save_is_imported(
    daemon: DaemonProcess, directory: Path, client: TransferClient, tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    archive = tmp_path / "docker.tar"
    skopeo("copy", f"oci:{directory}/layout:v1", f"docker-archive:{archive}:some/name:tag")

    client.load(compress(archive.read_bytes()), extra_references=[ANY_NAME], unpacks=[OVERLAY])

    assert say_hello(daemon, "docker.io/some/name:tag") == "hello\n"


def test_debians_ctr_exports_for_others(daemon: DaemonProcess, registry: str, tmp_path: Path) -> None:
    name = f"{registry}/test/busybox:v1"
    daemon.ctr("images", "pull", "--plain-http", name)

    daemon.ctr("images", "export", str(tmp_path / "archive.tar"), name)

    assert IMAGE.digest in skopeo("inspect", f"oci-archive:{tmp_path}/archive.tar")


ANY_NAME = imagestore_pb2.ImageReference(name="import", is_prefix=True, allow_overwrite=True)
OVERLAY = imagestore_pb2.UnpackConfiguration(snapshotter="overlayfs")


@pytest.fixture(scope="module")
def locked_registry(directory: Path) -> Iterator[str]:
    """A registry with test/busybox:v1 for whoever knows the password."""
    (directory / "locked").mkdir()
    (directory / "locked" / "htpasswd").write_text(HTPASSWD)
    with running_registry(directory / "locked", htpasswd=directory / "locked" / "htpasswd") as address:
        skopeo("copy", "--dest-creds=me:secret", f"oci:{directory}/layout:v1", f"docker://{address}/test/busybox:v1")
        yield address


def test_the_client_is_asked_for_credentials(locked_registry: str, client: TransferClient) -> None:
    asked: list[registry_pb2.AuthRequest] = []

    def answer(request: registry_pb2.AuthRequest) -> registry_pb2.AuthResponse:
        asked.append(request)
        return registry_pb2.AuthResponse(authType=registry_pb2.AuthType.CREDENTIALS, username="me", secret="secret")

    client.pull(f"{locked_registry}/test/busybox:v1", answer)

    assert {request.host for request in asked} == {locked_registry}
    assert asked[0].wwwauthenticate[0].startswith("Basic ")


@pytest.mark.parametrize("secret", ["wrong", ""])
def test_wrong_or_no_credentials(locked_registry: str, client: TransferClient, secret: str) -> None:
    def answer(request: registry_pb2.AuthRequest) -> registry_pb2.AuthResponse:
        kind = registry_pb2.AuthType.CREDENTIALS if secret else registry_pb2.AuthType.NONE
        return registry_pb2.AuthResponse(authType=kind, username="me", secret=secret)

    with pytest.raises(grpc.RpcError) as raised:
        client.pull(f"{locked_registry}/test/busybox:v1", answer)

    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_credentials_from_the_configuration(locked_registry: str) -> None:
    config = f'[registry.credentials."{locked_registry}"]\nusername = "me"\nsecret = "secret"\n'

    with DaemonProcess(config=config) as daemon, daemon.channel() as channel:
        TransferClient(channel).pull(f"{locked_registry}/test/busybox:v1", unpacks=[])

        assert locked_registry in daemon.ctr("images", "ls", "-q")

        # They come before what a client has, whose helper is not asked.
        (daemon.base / "config.json").write_text('{"credsStore": "not-installed"}')
        Pyctr(daemon)("-n", "other", "pull", f"{locked_registry}/test/busybox:v1")


def test_a_login_takes_the_way_of_a_pull(tmp_path: Path) -> None:
    """Which is the daemon's: of this registry, only its configuration knows that it speaks plain http."""
    users = tmp_path / "htpasswd"
    users.write_text(HTPASSWD)
    with (
        running_registry(tmp_path, users, host="127.0.0.2") as address,
        DaemonProcess(config=f'[registry]\nplain_http = ["{address}"]\n') as daemon,
    ):
        pyctr, login = Pyctr(daemon), ("login", "-u", "me", "--password-stdin", address)
        assert f"pyctr login {address}" in pyctr.run("pull", f"{address}/none").stderr

        refused = pyctr.run(*login, stdin="wrong\n")
        pyctr(*login, stdin="secret\n")

        assert refused.stderr == f"pyctr: {address} refuses this user name and password\n"
        assert "does not have it" in pyctr.run("pull", f"{address}/none").stderr


def test_containerd_2s_ctr(daemon: DaemonProcess, registry: str, tmp_path: Path) -> None:
    program = peers.find("ctr", at_least="2")

    def ctr(*arguments: str) -> str:
        command = [str(program), "--address", str(daemon.address), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}\n{daemon.log_text()[-4000:]}"
        return done.stdout

    name, copy = f"{registry}/test/busybox:v1", "example.com/copy:v1"
    ctr("images", "pull", f"{registry}/test/busybox:multi")
    ctr("images", "pull", name)
    ctr("images", "tag", name, copy)
    ctr("images", "push", f"{registry}/by/ctr2:v1", name)
    ctr("images", "export", str(tmp_path / "archive.tar"), name, copy)
    ctr("images", "rm", "--sync", name, copy)
    ctr("images", "import", "--digests", str(tmp_path / "archive.tar"))

    assert say_hello(daemon, copy) == "hello\n"
    assert IMAGE.digest in skopeo("inspect", f"docker://{registry}/by/ctr2:v1")
