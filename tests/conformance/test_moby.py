"""A current dockerd whose images are containerd's: they come, go, are made and built in our stores, and nothing stays.

What it does with containers is in test_dockerd, as for Debian's. Its command line is Debian's.
"""

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from support.buildkit import write_context
from support.daemon_process import DEADLINE, DaemonProcess, wait_until
from support.dockerd import IMAGE, Dockerd, moby, touch, two_stages
from support.footprint import Footprint
from support.pod_networks import own_host
from support.registry_process import running_registry

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.full, pytest.mark.timeout(300)]

OURS: Final = '[runtimes.runc]\npath = "embedded"\n'
STAGES: Final = two_stages(
    "RUN --mount=type=secret,id=word tr a-z A-Z </run/secrets/word >/x/secret",
    "RUN --network=none ls /sys/class/net | grep -c . >/x/links && echo th''ere",
    shown="made sent secret",
)
_LARGE: Final = 64 << 20  # bytes
PRINTS: Final = "b\n0\nsent\nWORD\n1000\n"


@dataclass(frozen=True)
class Works:
    """dockerd, the daemon below it, and where images come from."""

    docker: Dockerd
    daemon: DaemonProcess
    registry: str

    def known(self, kind: str) -> list[str]:
        """Return what the daemon itself has for dockerd: "images", "leases" or the like."""
        return self.daemon.ctr(kind, "ls", "-q", namespace="moby").split()

    def drop_leases(self, namespace: str = "moby") -> None:
        """Remove the leases that dockerd cannot remove: it leaves them to end when their time is over."""
        for lease in self.daemon.ctr("leases", "ls", "-q", namespace=namespace).split():
            self.daemon.ctr("leases", "rm", lease, namespace=namespace)

    def next_daemon(self) -> None:
        """Kill the daemon, start another one and return when dockerd has found it: it looks once in a while."""
        self.daemon.restart()
        wait_until(lambda: self.docker.run("images").returncode == 0, "dockerd finds the daemon")

    def images(self) -> dict[str, str]:
        """Return the names of images that docker lists, and their digests."""
        rows = self.docker("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
        return dict(row.split() for row in rows)

    def inspect(self, name: str) -> Any:
        return json.loads(self.docker("image", "inspect", name))[0]


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """All of it; when everything is pruned, nothing may be left of it in the daemon."""
    with own_host(), DaemonProcess(config=OURS) as daemon:
        before = Footprint(daemon)
        with running_registry(tmp_path_factory.mktemp("registry")) as registry, moby(daemon.address) as docker:
            works = Works(docker, daemon, registry)
            yield works
            docker("builder", "prune", "--all", "--force")
            docker("system", "prune", "--all", "--force", "--volumes")
            assert [works.known(kind) for kind in ("containers", "images", "content", "leases")] == [[]] * 4
            works.drop_leases("moby_history")  # of builds; Debian's command line knows none
        before.assert_unchanged()


@pytest.fixture
def base(works: Works) -> str:
    """The name of an image in the registry, which is not here."""
    name = f"{works.registry}/base:v1"
    works.docker("tag", IMAGE, name)
    works.docker("push", "--quiet", name)
    works.docker("rmi", name)
    return name


def test_images_come_and_go(works: Works, base: str) -> None:
    """Pushed, pulled, listed by either side and used, also when the daemon has been killed in between."""
    docker = works.docker
    kept = works.images()
    assert set(kept) == {IMAGE}

    assert f"Status: Downloaded newer image for {base}" in docker("pull", base)
    assert f"Status: Image is up to date for {base}" in docker("pull", base)

    assert works.images() == {IMAGE: kept[IMAGE], base: kept[IMAGE]}
    assert set(works.known("images")) == {f"docker.io/library/{IMAGE}", base}
    assert f"{base.removesuffix(':v1')}@{kept[IMAGE]}" in works.inspect(base)["RepoDigests"]
    assert docker("run", "--rm", base, "echo", "hello") == "hello\n"

    works.next_daemon()
    assert set(works.images()) == {IMAGE, base}
    assert docker("run", "--rm", base, "echo", "again") == "again\n"
    assert "not found" in docker.run("pull", f"{works.registry}/base:v2").stderr
    assert docker("rmi", base) == f"Untagged: {base}\n"
    assert docker("run", "--rm", IMAGE, "echo", "still") == "still\n"


def test_a_used_image_stays(works: Works, base: str) -> None:
    docker = works.docker
    docker("pull", "--quiet", base)
    docker("rmi", IMAGE)
    pid = docker.started("c1", base, "sh", "-c", "until [ -e /stop ]; do sleep 0.1; done")

    assert "is using its referenced image" in docker.run("rmi", base).stderr

    docker("image", "prune", "--all", "--force")
    docker("tag", base, IMAGE)
    touch(pid, "/stop")
    assert docker("wait", "c1") == "0\n"
    docker("rm", "c1")
    docker("rmi", base)


def test_a_pull_is_cut_off(works: Works, tmp_path: Path) -> None:
    """The daemon is killed while blobs come; dockerd tells it, and the next pull does the rest."""
    docker, name = works.docker, f"{works.registry}/large:v1"
    (tmp_path / "random").write_bytes(os.urandom(_LARGE))
    context = write_context(tmp_path, f"FROM {IMAGE}\nCOPY random /\n", {})
    docker("build", "--quiet", "--tag", name, str(context))
    docker("push", "--quiet", name)
    docker("rmi", name)
    docker("builder", "prune", "--all", "--force")
    ingests = works.daemon.root / "content/ingest"

    with subprocess.Popen([*docker.words, "pull", name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as pull:
        wait_until(lambda: any(ingests.glob("*")), "a blob is on its way")
        works.next_daemon()
        pull.wait(2 * DEADLINE)

    works.drop_leases()
    docker("pull", name)
    assert docker("run", "--rm", name, "sh", "-c", "wc -c </random") == f"{_LARGE}\n"
    docker("rmi", name)


def test_save_and_load(works: Works, tmp_path: Path) -> None:
    """What is saved is in OCI's format and in Docker's; both daemons load it."""
    docker, saved = works.docker, tmp_path / "saved.tar"
    digest = works.images()[IMAGE]
    docker("save", "--output", str(saved), IMAGE)

    with tarfile.open(saved) as file:
        index, manifest = (json.loads(file.extractfile(name).read()) for name in ("index.json", "manifest.json"))  # type: ignore[union-attr]
    assert [one["digest"] for one in index["manifests"]] == [digest]
    assert manifest[0]["RepoTags"] == [IMAGE]
    docker("rmi", IMAGE)
    assert works.known("content") == []
    assert f"Loaded image: {IMAGE}" in docker("load", "--input", str(saved))
    assert works.images() == {IMAGE: digest}
    assert docker("run", "--rm", IMAGE, "echo", "hello") == "hello\n"


def test_a_commit_is_a_layer_more(works: Works) -> None:
    docker = works.docker
    docker("run", "--name", "c1", IMAGE, "sh", "-c", "echo more >/more; rm /bin/tail")

    docker("commit", "--change", "CMD cat /more", "c1", "committed:1")

    assert sorted(docker("diff", "c1").splitlines()) == ["A /more", "C /bin", "D /bin/tail"]
    layers = [works.inspect(name)["RootFS"]["Layers"] for name in (IMAGE, "committed:1")]
    assert layers[1][:-1] == layers[0]
    assert docker("run", "--rm", "committed:1") == "more\n"
    assert docker.run("run", "--rm", "committed:1", "tail", "/more").returncode == 127
    assert len(docker("history", "--quiet", "committed:1").splitlines()) == 2
    docker("rm", "c1")
    docker("rmi", "committed:1")


def test_a_build_by_its_own_buildkit(works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps run in containers of its own, its snapshots are ours; the cache outlives the daemon."""
    docker = works.docker
    monkeypatch.setitem(docker.environment, "DOCKER_BUILDKIT", "1")
    (tmp_path / "secret").write_text("word\n")
    context = write_context(tmp_path / "context", STAGES, {"sent": "sent\n"})
    words = ("build", "--progress", "plain", "--secret", f"id=word,src={tmp_path}/secret", "--tag", "built:1")

    told = docker.run(*words, str(context))
    assert told.returncode == 0, told.stderr
    assert "there" in told.stderr
    assert docker("run", "--rm", "built:1") == PRINTS
    assert docker("run", "--rm", "built:1", "cat", "links") == "1\n"

    works.next_daemon()
    told = docker.run(*words, str(context))
    assert told.returncode == 0, told.stderr
    assert "there" not in told.stderr
    (context / "sent").write_text("other\n")
    docker(*words, str(context))
    assert docker("run", "--rm", "built:1", "cat", "sent") == "other\n"
    (context / "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo said; exit 3\n")
    done = docker.run(*words, str(context))
    assert done.returncode != 0
    assert "exit code: 3" in done.stderr
    docker("rmi", "built:1")
    docker("builder", "prune", "--all", "--force")
    assert docker("image", "prune", "--force").startswith("Total reclaimed space")
