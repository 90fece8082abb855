"""Published attacks, each by its number, by images that somebody else made: what `pyctr run` makes of them."""

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.attackers import snapshot
from support.daemon_process import DaemonProcess
from support.images import BuiltImage, image, write_archive
from support.pyctr_command import Pyctr

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SECRET = "AWS_SECRET_ACCESS_KEY"
Files = Mapping[str, bytes | str]
Load = Callable[..., str]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pyctr() -> Iterator[Pyctr]:
    """The command, on a daemon with something in its environment; at the end no container may be left."""
    with DaemonProcess(environment={SECRET: "of-the-daemon"}) as daemon:
        command = Pyctr(daemon)
        yield command
        assert command("ps", "-aq") == ""
        assert command("lease", "ls", "-q") == ""


@pytest.fixture
def load(pyctr: Pyctr, tmp_path: Path) -> Iterator[Load]:
    """Import an image of busybox, of more files and of a configuration; return its name."""
    loaded: list[str] = []

    def load(files: Files | None = None, built: BuiltImage | None = None, **config: Any) -> str:
        name = f"attack:{next(_numbers)}"
        if built is None:
            programs = {"bin/busybox": Path("/bin/busybox").read_bytes()}
            links = {f"bin/{applet}": "busybox" for applet in ("sh", "cat", "env", "id", "ls", "pwd", "sleep", "true")}
            built = image({**programs, **links}, files or {}, config={"Cmd": ["sh"], "Env": ["PATH=/bin"], **config})
        archive = write_archive(tmp_path / "image.tar", {name: built})
        loaded.append(pyctr("image", "import", str(archive)).strip())
        return loaded[-1]

    yield load
    for name in loaded:
        pyctr("image", "rm", name)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host's that no container is given."""
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "shadow").write_text("of the host")
    return directory


def run(pyctr: Pyctr, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return pyctr.run("run", "--rm", "--network", "none", *arguments)


def test_cve_2022_23648_volumes_hold_nothing_of_the_hosts(pyctr: Pyctr, load: Load, outside: Path) -> None:
    before = snapshot(outside)
    paths = [f"/../../../../..{outside}", "/link", "/link/deep", "/climbing", "/nested/link"]
    links: Files = {"link": str(outside), "climbing": "../" * 20 + str(outside), "nested/link": str(outside)}
    name = load(links, Volumes={path: {} for path in paths})
    script = f"for v in {' '.join(paths)}; do ls -A $v; touch $v/made; done; find / -xdev -name shadow"

    done = run(pyctr, name, "sh", "-c", script)

    assert "shadow" not in done.stdout
    assert snapshot(outside) == before


@pytest.mark.parametrize("user", ["4294967296", "2147483648:0", "1000000000000", "-1"])
def test_cve_2024_40635_a_user_that_is_none(pyctr: Pyctr, load: Load, user: str) -> None:
    """Refused, also where /etc/passwd has such a name; also CVE-2026-46680 and CVE-2016-3697."""
    passwd = "".join(f"{name}:x:0:0::/root:/bin/sh\n" for name in (user, "1000000000000", "4294967296", "-1"))
    name = load({"etc/passwd": passwd.replace("nobody", "x").encode()}, User=user)

    done = run(pyctr, name, "id", "-u")

    assert done.returncode == 125, done.stdout
    assert done.stdout == ""


def test_cve_2026_15809_a_home_that_is_no_path(pyctr: Pyctr, load: Load) -> None:
    """Also CVE-2022-4318."""
    name = load({"etc/passwd": b"root:x:0:0::/x\rroot2:x:0:0::/:\n"})

    assert run(pyctr, name, "sh", "-c", "echo $HOME").stdout == "/\n"


@pytest.mark.parametrize("kind", ["larger than is read", "a link to the host's"])
def test_cve_2026_47262_a_hostile_passwd(pyctr: Pyctr, load: Load, tmp_path: Path, kind: str) -> None:
    """Also CVE-2025-4437 and CVE-2024-9676."""
    (tmp_path / "passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    large = b"a:x:1:1::/:/bin/sh\n" * 200_000 + b"evil:x:0:0::/:/bin/sh\n"
    name = load({"etc/passwd": large if kind == "larger than is read" else str(tmp_path / "passwd")}, User="evil")

    done = run(pyctr, name, "id", "-u")

    assert done.returncode == 125
    assert "/etc/passwd" in done.stderr or "passwd file" in done.stderr


def test_cve_2023_25173_supplementary_groups(pyctr: Pyctr, load: Load) -> None:
    """Those of the image's user, those that are asked for, and none of the daemon's."""
    files = {"etc/passwd": b"web:x:33:44::/:/bin/sh\n", "etc/group": b"web:x:44:\nlog:x:7:web\nadm:x:8:other,web\n"}
    name = load(files, User="web")

    assert sorted(run(pyctr, name, "id", "-G").stdout.split(), key=int) == ["7", "8", "44"]
    assert run(pyctr, "--group-add", "99", "-u", "5:6", name, "id", "-G").stdout.split() == ["6", "99"]
    assert run(pyctr, "-u", "1:1", name, "id").stdout.split() == ["uid=1", "gid=1", "groups=1"]


def test_cve_2024_21626_working_directories(pyctr: Pyctr, load: Load) -> None:
    """An image's, and those of `run -w` and `exec -w`, are inside or refused."""
    links: Files = {"link7": "/proc/self/fd/7", "up": "/proc/1/cwd/../../../../.."}
    script = "pwd; cat ../../../../../etc/shadow 2>/dev/null"
    plain = load(links)
    container = pyctr("run", "-d", "--network", "none", plain, "sleep", "1000").strip()
    outcomes = [run(pyctr, load(links, WorkingDir=path), "sh", "-c", script) for path in ("/proc/self/fd/7", "/link7")]
    for directory in ("/proc/self/fd/8", "/link7", "/up"):
        outcomes.append(run(pyctr, "-w", directory, plain, "sh", "-c", script))
        outcomes.append(pyctr.run("exec", "-w", directory, container, "sh", "-c", script))
    pyctr("rm", "-f", container)

    for done in outcomes:
        assert done.returncode != 0 or done.stdout == "/\n", done
        assert "/proc" not in done.stdout


@pytest.mark.parametrize("link", ["absolute", "climbing"])
def test_cve_2025_9566_a_working_directory_is_made_inside(pyctr: Pyctr, load: Load, outside: Path, link: str) -> None:
    """Also CVE-2026-55686."""
    before = snapshot(outside)
    target = str(outside) if link == "absolute" else "../" * 20 + str(outside)
    name = load({"link": target}, WorkingDir="/link/made", User="33")

    done = run(pyctr, name, "sh", "-c", "pwd; touch here")

    assert done.stdout == f"{outside}/made\n"
    assert snapshot(outside) == before


def test_cve_2026_57231_nothing_of_the_daemons_environment(
    pyctr: Pyctr, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an entry without a value nor a pattern gets one from the daemon's environment, or the client's."""
    monkeypatch.setitem(pyctr.environment, SECRET, "of-the-client")
    name = load(Env=["PATH=/bin", SECRET, "*", "AWS_*", "=x", "", "GOOD=1"])

    done = run(pyctr, name, "env")

    assert "of-the" not in done.stdout
    assert {line.partition("=")[0] for line in done.stdout.splitlines()} == {"PATH", "HOSTNAME", "HOME", "GOOD"}
    assert "not NAME=VALUE" in done.stderr


def test_cve_2026_53488_labels_start_nothing(pyctr: Pyctr, load: Load, tmp_path: Path) -> None:
    """Not a logger of the image's choice, nor a restart, nor a removal."""
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    evil.chmod(0o755)
    labels = {
        "containerd.io/restart.loguri": f"binary://{evil}", "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": "always", "nerdctl/log-uri": f"binary://{evil}",
        "pyctr.io/log-path": str(tmp_path / "log"), "pyctr.io/auto-remove": "true", "vendor": "me",
    }  # fmt: skip
    container = pyctr("run", "-d", "--network", "none", load(Labels=labels), "true").strip()
    pyctr("wait", container)

    (found,) = json.loads(pyctr("inspect", container))
    pyctr("rm", container)

    assert {key for key, value in found["Labels"].items() if labels.get(key) == value} == {"vendor"}
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "log").exists()


def test_cve_2026_24054_an_image_without_layers(pyctr: Pyctr, load: Load) -> None:
    """It is an empty directory and shows nothing of where that is; what does not run is named."""
    name = load(built=image(config={"Cmd": ["/bin/sh"]}))

    done = run(pyctr, name)

    assert done.returncode == 127
    assert "/bin/sh" in done.stderr
    assert "Traceback" not in done.stderr


def test_cve_2022_29162_nothing_is_inheritable(pyctr: Pyctr, load: Load) -> None:
    """Whoever the user is, whatever was added, in an exec too; also CVE-2022-24769 and CVE-2022-27649."""
    name = load()
    options = ("--cap-add", "ALL")
    container = pyctr("run", "-d", "--network", "none", *options, name, "sleep", "1000").strip()
    status = ("cat", "/proc/self/status")
    outputs = [
        run(pyctr, *options, name, *status).stdout,
        run(pyctr, "--privileged", "-u", "1:1", name, *status).stdout,
        pyctr("exec", container, *status),
        pyctr("exec", "-u", "1", container, *status),
    ]
    assert pyctr("exec", "-u", "1", container, "id", "-u") == "1\n"  # CVE-2026-30892
    pyctr("rm", "-f", container)

    for output in outputs:
        assert re.findall(r"^Cap(?:Inh|Amb):\t(\w+)$", output, re.MULTILINE) == ["0" * 16] * 2


def test_cve_2024_5154_network_files_are_not_written_through_links(pyctr: Pyctr, load: Load, outside: Path) -> None:
    """/etc may lead to the host's: hosts, hostname and resolv.conf of the container do not go there."""
    before = snapshot(outside)
    name = load({"etc": str(outside)})

    done = run(pyctr, name, "cat", *(f"/etc/{file}" for file in ("hosts", "hostname", "resolv.conf")))

    assert done.returncode == 0, done.stderr
    assert "127.0.0.1\tlocalhost" in done.stdout
    assert snapshot(outside) == before


def test_cve_2020_15257_no_abstract_sockets(pyctr: Pyctr, load: Load) -> None:
    """Neither a container with the host's network sees one of ours, nor is there any."""
    name = load()
    container = pyctr("run", "-d", "--network", "host", name, "sleep", "1000").strip()
    seen = pyctr("exec", container, "cat", "/proc/net/unix")
    ours = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"pyctr" in (folder / "cmdline").read_bytes():
                ours |= {os.readlink(folder / "fd" / fd) for fd in os.listdir(folder / "fd")}
        except OSError:
            continue
    pyctr("rm", "-f", container)

    abstract = [line.split() for line in seen.splitlines() if " @" in line]
    assert any(link.startswith("socket:") for link in ours)
    assert not [fields for fields in abstract if f"socket:[{fields[6]}]" in ours]
