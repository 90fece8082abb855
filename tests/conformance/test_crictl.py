"""crictl as people use it on a node: images."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.crictl import Crictl
from support.daemon_process import DaemonProcess
from support.images import busybox, digest, image, write_layout
from support.registry_process import free_port, running_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (Debian package skopeo)"),
]

HTPASSWD = "me:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"  # bcrypt of "secret"

BUSYBOX = busybox(Cmd=["/bin/sh"], User="1000")
OTHER = image({"etc/other": b"other"}, config={"User": "web"})
ID, OTHER_ID = digest(BUSYBOX.config), digest(OTHER.config)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry with test/busybox:v1 and v2, and test/other:v1, for "me" with the password "secret"."""
    directory = tmp_path_factory.mktemp("registry")
    write_layout(directory / "layout", {"busybox": BUSYBOX, "other": OTHER})
    (directory / "htpasswd").write_text(HTPASSWD)
    with running_registry(directory, directory / "htpasswd") as address:
        for name, target in (("busybox", "busybox:v1"), ("busybox", "busybox:v2"), ("other", "other:v1")):
            _copy(directory, name, f"{address}/test/{target}")
        yield address


def _copy(directory: Path, tag: str, target: str) -> None:
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", "--dest-creds=me:secret"]
    subprocess.run([*command, f"oci:{directory}/layout:{tag}", f"docker://{target}"], check=True, timeout=60)


@pytest.fixture
def crictl(daemon: DaemonProcess) -> Iterator[Crictl]:
    """crictl, with no image before and after."""
    found = Crictl(daemon)
    yield found
    found("rmi", "--all")
    assert found("images", "-q") == ""


def pull(crictl: Crictl, name: str) -> str:
    """Pull an image and return its id."""
    return crictl("pull", "--creds", "me:secret", name).split()[-1]


def test_pull_list_inspect_and_remove(crictl: Crictl, registry: str) -> None:
    name = f"{registry}/test/busybox"

    assert pull(crictl, f"{name}:v1") == ID
    assert pull(crictl, f"{name}:v2") == ID
    assert pull(crictl, f"{registry}/test/other:v1") == OTHER_ID

    assert crictl("images", "-q").split() == sorted([ID, OTHER_ID])
    [listed] = crictl.json("images", f"{name}:v2")["images"]
    assert listed["repoTags"] == [f"{name}:v1", f"{name}:v2"]
    assert listed["repoDigests"] == [f"{name}@{BUSYBOX.digest}"]
    assert (listed["uid"], listed["username"]) == ({"value": "1000"}, "")
    told = crictl.json("inspecti", ID[7:20])
    assert told["status"] == listed
    assert told["info"]["imageSpec"]["config"]["User"] == "1000"
    assert int(crictl.json("imagefsinfo")["status"]["imageFilesystems"][0]["usedBytes"]["value"]) > 0

    crictl("rmi", f"{name}:v1")

    assert crictl("images", "-q").split() == [OTHER_ID]
    gone = crictl.run("inspecti", f"{name}:v2")
    assert gone.returncode != 0
    assert "no such image" in gone.stderr
    crictl("rmi", "--prune")
    assert crictl("images", "-q") == ""


@pytest.mark.parametrize("option", [("--creds", "me:secret"), ("--auth", "bWU6c2VjcmV0")])
def test_every_way_to_give_credentials(crictl: Crictl, registry: str, option: tuple[str, str]) -> None:
    assert OTHER_ID in crictl("pull", *option, f"{registry}/test/other:v1")


def test_what_goes_wrong_is_told(crictl: Crictl, registry: str) -> None:
    for name, credentials, text in (
        (f"{registry}/test/busybox:none", "me:secret", "code = NotFound"),
        (f"{registry}/test/busybox:v1", "me:wrong", "pull access denied"),
        (f"127.0.0.1:{free_port()}/test/busybox:v1", "me:secret", "RegistryUnavailable"),
        ("Not/Valid", "me:secret", "code = InvalidArgument"),
    ):
        done = crictl.run("pull", "--creds", credentials, name)
        assert done.returncode != 0
        assert text in done.stderr, done.stderr
        assert "secret" not in done.stderr


def test_a_pull_has_a_deadline(crictl: Crictl, registry: str) -> None:
    done = crictl.run("pull", "--creds", "me:secret", "--pull-timeout", "1ms", f"{registry}/test/busybox:v1")

    assert done.returncode != 0
    assert "DeadlineExceeded" in done.stderr
