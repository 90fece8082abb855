"""Published escapes, each by its number: the interpreter that makes a container is not the container's to use."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyctr_shim.oci import forks
from pyctr_shim.oci.errors import OciError
from support.attackers import X86_ONLY, elf_interpreter, loader, private_interpreter
from support.oci_bundle import Lab, eventually, process
from support.patience import DEADLINE

pytestmark = pytest.mark.root
# What is made without a fork has no interpreter: its init is a stub. This takes a fork.
BY_A_FORK = {"createContainer": [{"path": "/bin/true"}]}
# Keeps trying until nobody runs from the file any more.
OVERWRITE = """
n=0
while [ $n -lt 500 ]; do
    { echo pwned >/proc/self/fd/9; } 2>/dev/null && break
    n=$((n + 1))
    /bin/busybox usleep 1000
done
echo done >/tried
exec /bin/busybox sleep 1000
"""


@pytest.fixture
def interpreter(lab: Lab) -> Path:
    """One that may be lost."""
    return private_interpreter(lab.base / "private")


@pytest.fixture
def command(lab: Lab, interpreter: Path) -> Iterator[list[str]]:
    """`pyctr-oci`, run by that interpreter; at the end its containers are removed."""
    words = [str(interpreter), "-m", "pyctr_shim.oci", "--root", str(lab.base / "state")]
    yield words
    ours = [sys.executable, *words[1:]]
    for name in subprocess.run([*ours, "list", "-q"], capture_output=True, text=True, check=True).stdout.split():
        subprocess.run([*ours, "delete", "--force", name], check=True)


@X86_ONLY
@pytest.mark.parametrize("way", ["run", "exec"])
def test_cve_2019_5736_the_interpreter_cannot_be_overwritten(
    lab: Lab, interpreter: Path, command: list[str], way: str
) -> None:
    """A script whose interpreter is /proc/self/exe, and the image's own dynamic linker for what that turns out to be.

    That linker keeps the file open and writes to it as soon as the runtime has ended.
    """
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()
    spec = lab.spec("/evil") if way == "run" else lab.spec("sleep", "1000")
    spec["hooks"] = BY_A_FORK
    bundle = lab.bundle(spec)
    root = bundle / "rootfs"
    (root / "evil").write_text("#!/proc/self/exe\n")
    (root / "attack").write_text(OVERWRITE)
    linker = root / elf_interpreter(interpreter).lstrip("/")
    linker.parent.mkdir(parents=True, exist_ok=True)
    linker.write_bytes(loader("/bin/sh", "/attack"))
    for path in (root / "evil", root / "attack", linker):
        path.chmod(0o755)

    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
        [*command, "run", "--detach", "--bundle", str(bundle), "c1"], check=True, timeout=2 * DEADLINE, **quiet
    )
    if way == "exec":
        subprocess.run([*command, "exec", "--detach", "c1", "/evil"], check=False, timeout=2 * DEADLINE, **quiet)

    eventually(lambda: (root / "tried").exists())
    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


def test_cve_2019_5736_a_joining_process_cannot_be_opened(lab: Lab) -> None:
    """Root of the container finds no way into the interpreter that joins it: neither its exe nor its fds."""
    script = ("while :; do for p in /proc/[0-9]*; do "
              'case "$(readlink $p/exe)" in *python*) echo caught; exit;; esac; done; done')  # fmt: skip
    spec = lab.spec("sh", "-c", script)
    spec["process"]["capabilities"] = {name: ["CAP_DAC_OVERRIDE"] for name in ("bounding", "effective", "permitted")}
    container = lab.running(spec)

    for _ in range(20):
        assert lab.exec(container, process("true")).status == 0

    # It would have ended had it read the link of a process that was still python.
    assert container.pids()[0] == container.pid
    assert lab.exec(container, process("true")).status == 0


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_nothing_is_imported_from_the_container(lab: Lab, in_exec: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that the interpreter might look for late is never found in the container, where it would run as root."""
    monkeypatch.setattr(forks, "spawn_into", lambda _joiner: None)  # the way on which there is an interpreter
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    root = bundle / "rootfs"
    # Where it runs is the container's root by then, or still the host's.
    evil = f"import os\nopen('/pwned' if not os.path.isdir('{lab.base}') else '{lab.base}/pwned', 'w')\n"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [
        *(Path(path) for path in sys.path if path),
        Path(f"/usr/lib/{version}"),
        Path(f"/lib/{version}"),
        Path("/"),
    ]
    for place in places:
        directory = root / str(place).lstrip("/")
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            (directory / "encodings").mkdir(parents=True)
        for name in ("encodings.py", "encodings/__init__.py", "encodings/idna.py", "linecache.py", "traceback.py",
                     "locale.py", "codecs.py", "sitecustomize.py"):  # fmt: skip
            with contextlib.suppress(NotADirectoryError):
                (directory / name).write_text(evil)

    # The paths on which something goes wrong late are those that might want a traceback or a codec.
    if in_exec:
        spec["process"] = process("sleep", "1000")
        (bundle / "config.json").write_text(json.dumps(spec))
        container = lab.running(spec, bundle=bundle)
        for document in (process("nope"), process("true", cwd="/nope"), process("true", env=["\udce4=\udcff"])):
            with contextlib.suppress(OciError):
                lab.exec(container, document)
    else:
        for change in (
            {"args": ["nope"]},
            {"cwd": "/nope"},
            {"args": ["true", "\u20ac"]},
            {"env": ["PATH=/bin", "Ä=ö"]},
        ):
            spec["process"] = {**process("true"), **change}
            (bundle / "config.json").write_text(json.dumps(spec))
            with contextlib.suppress(OciError):
                lab.run(spec, bundle=bundle)

    assert not (lab.base / "pwned").exists()
    assert not (root / "pwned").exists()


@pytest.mark.parametrize("way", ["in place", "forked"])
def test_a_process_being_set_up_cannot_be_traced(lab: Lab, way: str) -> None:
    spec = lab.spec("true")
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    if way == "forked":
        spec["hooks"] = BY_A_FORK

    container = lab.create(spec)

    # Files of a process that may be traced by its own kind belong to its user.
    assert os.stat(f"/proc/{container.pid}/fd").st_uid == 0
    assert os.readlink(f"/proc/{container.pid}/cwd") == "/"
