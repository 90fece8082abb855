"""Published escapes, each by its number: what an image or a neighbour prepares must not reach the host."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim.oci.errors import OciError
from pyctr_sys.capabilities import NAMES
from support.oci_bundle import Lab, Spec, process

pytestmark = pytest.mark.root


def shell(lab: Lab, script: str) -> Spec:
    return lab.spec("sh", "-c", script)


def bind(spec: Spec, destination: str, source: Path) -> Spec:
    spec["mounts"].append({"destination": destination, "type": "bind", "source": str(source), "options": ["rbind"]})
    return spec


@contextlib.contextmanager
def racing(one: str, other: str, directory: Path) -> Iterator[None]:
    """Exchange two names in a directory over and over while the body runs."""
    # The racer is a process: the runtime forks, and only does so from a process of one thread.
    pid = os.fork()
    while pid == 0:
        with contextlib.suppress(OSError):
            os.rename(directory / one, directory / "between")
            os.rename(directory / other, directory / one)
            os.rename(directory / "between", directory / other)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_cve_2019_5736_the_interpreter_cannot_be_overwritten(lab: Lab) -> None:
    """A script whose interpreter is /proc/self/exe gets the container's program or nothing."""
    container = lab.running()
    root = Path(container.bundle) / "rootfs"
    script = root / "bin/evil"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    interpreter = Path(os.readlink("/proc/self/exe"))
    before = hashlib.sha256(interpreter.read_bytes()).hexdigest()

    for _ in range(3):
        with contextlib.suppress(OciError):
            lab.exec(container, process("/bin/evil"))

    assert hashlib.sha256(interpreter.read_bytes()).hexdigest() == before


def test_cve_2019_5736_a_joining_process_cannot_be_opened(lab: Lab) -> None:
    """Root of the container finds no way into the interpreter that joins it: neither its exe nor its fds."""
    spec = shell(lab, "while :; do for p in /proc/[0-9]*; do "
                      'case "$(readlink $p/exe)" in *python*) echo caught; exit;; esac; done; done')  # fmt: skip
    spec["process"]["capabilities"] = {name: ["CAP_DAC_OVERRIDE"] for name in ("bounding", "effective", "permitted")}
    container = lab.running(spec)

    for _ in range(20):
        assert lab.exec(container, process("true")).status == 0

    # It would have ended had it read the link of a process that was still python.
    assert container.pids()[0] == container.pid
    assert lab.exec(container, process("true")).status == 0


@pytest.mark.parametrize("name", ["/proc", "/sys"])
def test_cve_2019_16884_proc_and_sys_must_be_directories(lab: Lab, name: str) -> None:
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    (bundle / "rootfs" / name[1:]).rmdir()
    (bundle / "rootfs" / name[1:]).symlink_to("/tmp")

    with pytest.raises(OciError, match=r"must be mounted on ordinary directory"):
        lab.create(spec, bundle=bundle)


@pytest.mark.parametrize("destination", ["/proc", "//proc", "/proc/", "/x/../proc", "/proc/self/attr", "/proc/sys"])
def test_cve_2019_16884_nothing_is_mounted_over_proc(lab: Lab, destination: str) -> None:
    (lab.base / "volume").mkdir()

    with pytest.raises(OciError, match=r'cannot be mounted (at "/proc"|because it is inside /proc)'):
        lab.create(bind(lab.spec("true"), destination, lab.base / "volume"))


def test_cve_2019_19921_a_link_into_proc_is_inside_proc(lab: Lab) -> None:
    (lab.base / "volume").mkdir()
    spec = bind(lab.spec("true"), "/innocent/sys", lab.base / "volume")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/innocent").symlink_to("/proc")

    with pytest.raises(OciError, match=r"because it is inside /proc"):
        lab.create(spec, bundle=bundle)


@pytest.mark.parametrize("link", ["/outside", "../../../../../../outside", "/proc/1/root/outside"])
def test_cve_2021_30465_a_link_does_not_lead_out_of_the_root(lab: Lab, link: str) -> None:
    """A mount target behind a symlink lands in the container, or the mount is refused."""
    outside = lab.base / "outside"
    outside.mkdir()
    (lab.base / "data").mkdir()
    spec = bind(shell(lab, "touch /mnt/link/made"), "/mnt/link", lab.base / "data")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/mnt").mkdir()
    (bundle / "rootfs/mnt/link").symlink_to(link if link != "/outside" else str(outside))

    with contextlib.suppress(OciError):
        lab.run(spec, bundle=bundle)

    assert list(outside.iterdir()) == []


def test_cve_2021_30465_cve_2024_45310_exchanged_targets(lab: Lab) -> None:
    """A neighbour swaps a directory of a shared volume for a link while mounts below it are made."""
    volume, outside, data = lab.base / "volume", lab.base / "outside", lab.base / "data"
    for directory in (volume / "real", outside, data):
        directory.mkdir(parents=True)
    (volume / "swap").symlink_to(outside)
    spec = bind(lab.spec("true"), "/vol", volume)
    bind(spec, "/vol/real/target", data)

    with racing("real", "swap", volume):
        for _ in range(10):
            with contextlib.suppress(OciError):
                lab.run(spec)

    assert list(outside.iterdir()) == []


def test_cve_2021_43784_endless_maps_are_refused(lab: Lab) -> None:
    spec = lab.spec("true")
    spec["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": number, "hostID": number, "size": 1} for number in range(10_000)]
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = maps

    with pytest.raises(OciError, match=r"linux.uidMappings: more than 340 entries"):
        lab.create(spec)


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_cve_2022_29162_nothing_is_inheritable(lab: Lab, in_exec: bool) -> None:
    sets = {name: list(NAMES) for name in ("bounding", "effective", "permitted")}
    document = process("grep", "CapInh", "/proc/self/status", capabilities=sets)
    spec = lab.spec("true")
    spec["process"] = document

    ended = lab.exec(lab.running(), document) if in_exec else lab.run(spec)

    assert ended.output.split() == ["CapInh:", "0" * 16]


@pytest.mark.parametrize("number", [3, 4, 5, 7, 9])
@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_cve_2024_21626_no_directory_through_an_fd(lab: Lab, number: int, in_exec: bool) -> None:
    spec = lab.spec("pwd")
    document = process("pwd", cwd=f"/proc/self/fd/{number}")
    leaked_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.set_inheritable(leaked_fd, True)
        if in_exec:
            container = lab.running()
            with pytest.raises(OciError, match=r"process.cwd"):
                lab.exec(container, document)
        else:
            spec["process"] = document
            with pytest.raises(OciError, match=r"process.cwd"):
                lab.create(spec)
    finally:
        os.close(leaked_fd)


@pytest.mark.parametrize("link", ["absolute", "climbing"])
def test_cve_2025_9566_a_working_directory_is_made_inside(lab: Lab, link: str) -> None:
    outside = lab.base / "outside"
    outside.mkdir()
    spec = lab.spec("pwd")
    spec["process"]["cwd"] = "/link/made"
    bundle = lab.bundle(spec)
    (bundle / "rootfs/link").symlink_to(outside if link == "absolute" else f"../../../../../..{outside}")

    with pytest.raises(OciError, match=r"process.cwd"):
        lab.create(spec, bundle=bundle)

    assert not list(outside.iterdir())


def test_cve_2024_21626_only_three_fds(lab: Lab) -> None:
    output = lab.run(shell(lab, "cd /proc/self/fd; for fd in *; do [ -e $fd ] && echo $fd; done")).output

    assert output.split() == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ["link", "file", "other device"])
def test_cve_2025_31133_a_false_null_device_masks_nothing(lab: Lab, kind: str) -> None:
    """Where /dev is the image's affair (a bind mount), what is masked with must be the null device."""
    dev = lab.base / "dev"
    dev.mkdir()
    secret = lab.base / "secret"
    secret.write_text("")
    if kind == "link":
        (dev / "null").symlink_to(secret)
    elif kind == "file":
        (dev / "null").write_text("")
    else:
        os.mknod(dev / "null", 0o020666, os.makedev(1, 5))
    spec = lab.spec("true")
    spec["mounts"] = [item for item in spec["mounts"] if not item["destination"].startswith("/dev")]
    bind(spec, "/dev", dev)
    spec["linux"]["maskedPaths"] = ["/proc/timer_list"]

    with pytest.raises(OciError, match=r"/dev/null|maskedPaths"):
        lab.create(spec)


@pytest.mark.parametrize("victim", ["console", "pts/ptmx"])
def test_cve_2025_52565_the_terminal_is_not_redirected(lab: Lab, victim: str) -> None:
    dev = lab.base / "dev"
    (dev / "pts").mkdir(parents=True)
    os.mknod(dev / "null", 0o020666, os.makedev(1, 3))
    outside = lab.base / "outside"
    outside.mkdir()
    (outside / "x").write_text("untouched")
    (dev / victim).symlink_to("/outside/x" if victim == "console" else "/dev/null")
    spec = lab.spec("true")
    spec["process"]["terminal"] = True
    spec["mounts"] = [item for item in spec["mounts"] if not item["destination"].startswith("/dev")]
    bind(spec, "/dev", dev)
    bind(spec, "/outside", outside)

    # Without a devpts of its own there is no pty; and a console behind a link is not mounted on what it names.
    with pytest.raises(OciError, match=r"process.terminal"):
        lab.create(spec)
    assert (outside / "x").read_text() == "untouched"


def test_cve_2025_52881_labels_and_sysctls_go_to_the_real_proc(lab: Lab) -> None:
    """A false /proc/sys in the image is never written: the kernel's parameter is set, or the start fails."""
    spec = lab.spec("cat", "/proc/sys/net/ipv4/ip_forward")
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    bundle = lab.bundle(spec)
    false_proc = bundle / "rootfs/proc/sys/net/ipv4"
    false_proc.mkdir(parents=True)
    (false_proc / "ip_forward").write_text("0\n")

    assert lab.run(spec, bundle=bundle).output == "1\n"
    assert (false_proc / "ip_forward").read_text() == "0\n"


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.drop_caches", "net/../kernel/core_pattern", "kernel.shmmax/../core_pattern", ""]
)
def test_cve_2022_0811_sysctls_of_the_host_are_refused(lab: Lab, name: str) -> None:
    spec = lab.spec("true")
    spec["linux"]["sysctl"] = {name: "|/evil"}

    with pytest.raises(OciError, match=r"linux.sysctl"):
        lab.create(spec)


def test_cve_2026_41579_a_link_at_dev_is_not_followed(lab: Lab) -> None:
    outside = lab.base / "outside"
    outside.mkdir()
    (outside / "ptmx").write_text("kept")
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/dev").rmdir()
    (bundle / "rootfs/dev").symlink_to(outside)

    with contextlib.suppress(OciError):
        lab.run(spec, bundle=bundle)

    assert {entry.name for entry in outside.iterdir()} == {"ptmx"}


@pytest.mark.parametrize("in_exec", [False, True], ids=["run", "exec"])
def test_nothing_is_imported_from_the_container(lab: Lab, in_exec: bool) -> None:
    """A module that the interpreter might look for late is never found in the container, where it would run as root."""
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    root = bundle / "rootfs"
    evil = f"open('{lab.base}/pwned', 'w'); open('/pwned', 'w')\n"
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


def test_a_hostile_passwd_gives_no_home(lab: Lab) -> None:
    """A FIFO does not stop the runtime, and a file without end is not read to it."""
    spec = lab.spec("sh", "-c", "echo $HOME")
    bundle = lab.bundle(spec)
    passwd = bundle / "rootfs/etc/passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    assert lab.run(spec, bundle=bundle).output == "/\n"

    passwd.unlink()
    with passwd.open("wb") as file:
        file.truncate(2 << 30)

    assert lab.run(spec, bundle=bundle).output == "/\n"


def test_a_process_being_set_up_cannot_be_traced(lab: Lab) -> None:
    container = lab.create(lab.spec("true"))

    assert os.stat(f"/proc/{container.pid}/fd").st_uid == 0
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert "CoreDumping:\t0" in status
    assert os.readlink(f"/proc/{container.pid}/cwd") == "/"
