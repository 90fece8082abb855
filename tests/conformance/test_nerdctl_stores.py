"""What nerdctl 2 keeps: images, also in a registry, volumes, networks, compose projects; what it tells and prunes."""

import json
import os
import tarfile
import urllib.request
from pathlib import Path

import pytest

from support.daemon_process import wait_until
from support.nerdctl import NAME, Nerdctl, addresses, page
from support.pod_networks import command
from support.registry_process import free_port, running_registry

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]


def test_events(nerdctl: Nerdctl) -> None:
    def happened(id: str) -> list[str]:
        lines = output.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line)["Topic"] for line in lines if id in line]

    def come_and_go() -> str:
        id = nerdctl.sleeper("guest", "--network", "none")
        nerdctl("rm", "--force", "guest")
        return id

    with nerdctl.background("events", "--format", "{{json .}}") as (_, output):
        wait_until(lambda: bool(happened(come_and_go())), "the client listens")
        id = come_and_go()
        wait_until(lambda: "/containers/delete" in happened(id), "all has been told")
        topics = [topic for topic in happened(id) if topic.startswith(("/tasks", "/containers"))]
    assert [topic for topic in topics if topic != "/containers/update"] == [
        "/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete", "/containers/delete",
    ]  # fmt: skip


@pytest.mark.full
def test_images(nerdctl: Nerdctl, tmp_path: Path) -> None:
    """One made of a container, pushed, removed, pulled, saved and loaded: the same digest and files all along."""
    nerdctl("run", "--name", "base", NAME, "sh", "-c", "echo more >/etc/more; rm /etc/hello")
    with running_registry(tmp_path) as registry:
        name = f"{registry}/test/made:v1"
        nerdctl("commit", "--message", "with more", "--change", 'CMD ["/bin/cat", "/etc/more"]', "base", name)
        nerdctl("rm", "base")
        digest = nerdctl.inspect(name, "image")["RepoDigests"][0].partition("@")[2]
        [newest, *_] = nerdctl.rows("history", name)
        assert (newest["Comment"], newest["Snapshot"] != "<missing>") == ("with more", True)
        [row] = nerdctl.rows("images", "--no-trunc", name)
        assert (row["Repository"], row["Tag"], row["Digest"]) == (f"{registry}/test/made", "v1", digest)

        nerdctl("push", "--quiet", name)
        with urllib.request.urlopen(f"http://{registry}/v2/test/made/tags/list") as answer:
            assert json.load(answer) == {"name": "test/made", "tags": ["v1"]}
        nerdctl("rmi", name)
        assert name not in nerdctl("images", "--names")
        nerdctl("pull", "--quiet", name)
        nerdctl.daemon.restart()
        assert f"{registry}/test/made@{digest}" in nerdctl.inspect(name, "image")["RepoDigests"]
        assert nerdctl("run", "--rm", name) == "more\n"
        assert "hello" not in nerdctl("run", "--rm", name, "ls", "/etc").split()
        assert "not found" in nerdctl.fails("pull", f"{registry}/test/made:v2")

        saved = tmp_path / "saved.tar"
        nerdctl("save", "--output", str(saved), name, NAME)
        with tarfile.open(saved) as file:
            index = json.loads(file.extractfile("index.json").read())  # type: ignore[union-attr]
        named = {one["annotations"]["io.containerd.image.name"]: one["digest"] for one in index["manifests"]}
        assert (set(named), named[name]) == ({name, NAME}, digest)
        nerdctl("rmi", name)
        nerdctl("load", "--input", str(saved))
        assert nerdctl("run", "--rm", name, "cat", "/etc/more") == "more\n"
        nerdctl("rmi", name)


@pytest.mark.full
def test_file_systems(nerdctl: Nerdctl, tmp_path: Path) -> None:
    """What `export` takes out of a container, `import` makes an image of."""
    exported = tmp_path / "files.tar"
    nerdctl.sleeper("source", script="echo more >/etc/more; exec sleep 1000")
    nerdctl("exec", "source", "sh", "-c", "until [ -s /etc/more ]; do sleep 0.1; done")
    nerdctl("export", "--output", str(exported), "source")
    nerdctl("rm", "--force", "source")
    with tarfile.open(exported) as file:
        assert {"bin/busybox", "etc/hello", "etc/more"} <= {member.name for member in file}

    nerdctl("import", "--message", "flat", str(exported), "example.com/flat:v1")

    assert len(nerdctl.inspect("example.com/flat:v1", "image")["RootFS"]["Layers"]) == 1
    assert nerdctl("run", "--rm", "example.com/flat:v1", "/bin/cat", "/etc/hello", "/etc/more") == "hello\nmore\n"
    nerdctl("rmi", "example.com/flat:v1")


def test_nerdctl_has_no_word_for_the_use_of_disks(nerdctl: Nerdctl) -> None:
    """One that has it is to be held against what the daemon knows, and docs/clients.md to be changed."""
    assert r"unknown subcommand \"df\" for \"system\"" in nerdctl.fails("system", "df")


@pytest.mark.full
def test_what_is_not_used_is_pruned(nerdctl: Nerdctl) -> None:
    nerdctl("run", "--name", "ended", NAME, "true")
    nerdctl.sleeper("running", "--volume", "used:/used", "--volume", "/anonymous")
    nerdctl("run", "--name", "another", "--volume", "/anonymous", NAME, "true")
    nerdctl("volume", "create", "unused")
    nerdctl("network", "create", "unused")
    nerdctl("tag", NAME, "example.com/unused:v1")

    nerdctl("system", "prune", "--force", "--volumes")
    assert [row["Names"] for row in nerdctl.rows("ps", "--all")] == ["running"]
    assert nerdctl.run("network", "inspect", "unused").returncode == 1
    assert len(volumes := nerdctl("volume", "ls", "--quiet").split()) == 3
    assert {"used", "unused"} < set(volumes)  # only those without a name go
    nerdctl("volume", "prune", "--force", "--all")
    assert set(nerdctl("volume", "ls", "--quiet").split()) == set(volumes) - {"unused"}
    nerdctl("image", "prune", "--force", "--all")  # the running container's stays
    assert nerdctl("images", "--format", "{{.Repository}}:{{.Tag}}").split() == [NAME]
    nerdctl("rm", "--force", "--volumes", "running")
    nerdctl("volume", "rm", "used")


@pytest.mark.full
def test_networks(nerdctl: Nerdctl) -> None:
    """Containers of one network find each other by name; those of two have an address in each."""
    nerdctl("network", "create", "--subnet", "10.77.1.0/24", "front")
    nerdctl("network", "create", "--subnet", "10.77.2.0/24", "back")
    serve = "mkdir /www; echo $0 >/www/index.html; exec httpd -f -p 80 -h /www"
    nerdctl.sleeper("server", "--network", "front", "--network", "back", script=serve)

    both = addresses(nerdctl.pid("server"))
    assert [address.rpartition(".")[0] for link in ("eth0", "eth1") for address in both[link]] == ["10.77.1", "10.77.2"]
    for network in ("front", "back"):
        assert nerdctl("run", "--rm", "--network", network, NAME, "wget", "-q", "-O-", "http://server/") == "sh\n"
    nerdctl.daemon.restart()
    joined = nerdctl("run", "--rm", "--network", "container:server", NAME, "wget", "-q", "-O-", "http://127.0.0.1/")
    assert joined == "sh\n"
    inside = nerdctl("run", "--rm", "--network", "host", NAME, "readlink", "/proc/self/ns/net").strip()
    assert inside == os.readlink("/proc/thread-self/ns/net")
    assert nerdctl("run", "--rm", "--network", "none", NAME, "ls", "/sys/class/net") == "lo\n"
    assert "is in use" in nerdctl.fails("network", "rm", "front")
    nerdctl("rm", "--force", "server")
    nerdctl("network", "rm", "front", "back")
    assert "10.77." not in command("ip", "-4", "address")


COMPOSE = """
services:
  web:
    image: {image}
    command: ["sh", "-c", "echo composed >/www/index.html; exec httpd -f -p 80 -h /www"]
    ports: ["127.0.0.1:{port}:80"]
    volumes: ["site:/www"]
    stop_signal: SIGKILL
  client:
    image: {image}
    command: ["sh", "-c", "until wget -q -O- http://web/; do sleep 0.2; done; exec sleep 1000"]
    depends_on: [web]
    stop_signal: SIGKILL
volumes:
  site: {{}}
"""


def test_compose(nerdctl: Nerdctl, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "compose.yaml").write_text(COMPOSE.format(image=NAME, port=port))
    compose = ("compose", "--file", str(tmp_path / "compose.yaml"), "--project-name", "lab")

    nerdctl(*compose, "up", "--detach")

    wait_until(lambda: page(f"127.0.0.1:{port}") == "composed\n", "the server answers")
    wait_until(lambda: "composed" in nerdctl(*compose, "logs", "--no-color", "client"), "the client has seen it")
    nerdctl.daemon.restart()
    assert set(nerdctl(*compose, "ps", "--services").split()) == {"web", "client"}
    assert nerdctl(*compose, "exec", "-T", "client", "wget", "-q", "-O-", "http://web/") == "composed\n"
    nerdctl(*compose, "restart", "web")
    wait_until(lambda: page(f"127.0.0.1:{port}") == "composed\n", "the server answers again")
    nerdctl(*compose, "down", "--volumes")
    assert page(f"127.0.0.1:{port}") is None
