"""Published escapes, each by its number: what an image or a neighbour makes of names does not lead a mount astray."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from pyctr_shim.oci.errors import OciError
from pyctr_shim.oci.runtime import RootfsMount
from support.attackers import STARTS, exchanging, snapshot
from support.oci_bundle import Lab, Spec, make_root

pytestmark = pytest.mark.root
DEVPTS = {
    "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"],
}  # fmt: skip


def shell(lab: Lab, script: str) -> Spec:
    return lab.spec("sh", "-c", script)


def bind(spec: Spec, destination: str, source: Path, *options: str) -> Spec:
    item = {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", *options]}
    spec["mounts"].append(item)
    return spec


def without_dev(spec: Spec) -> Spec:
    spec["mounts"] = [item for item in spec["mounts"] if not item["destination"].startswith("/dev")]
    return spec


def attempt(lab: Lab, spec: Spec, bundle: Path) -> str:
    """Return what a container printed, or why there is none: under attack, either is right."""
    try:
        return lab.run(spec, bundle=bundle).output
    except OciError as error:
        return str(error)


@pytest.fixture
def outside(lab: Lab) -> Path:
    """A directory of the host's that no container is given."""
    directory = lab.base / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "ptmx").write_text("kept")
    (directory / "file").write_text("kept")
    return directory


@pytest.fixture
def volume(lab: Lab) -> Path:
    """A directory that a container shares with others."""
    directory = lab.base / "volume"
    directory.mkdir()
    return directory


# -- /proc and /sys


@pytest.mark.parametrize("name", ["/proc", "/sys"])
@pytest.mark.parametrize("kind", ["link", "link to a volume"])
def test_cve_2019_16884_proc_and_sys_must_be_directories(lab: Lab, volume: Path, name: str, kind: str) -> None:
    """What later checks and labels take for /proc and /sys must be that; also CVE-2023-28642, and CVE-2023-27561."""
    spec = lab.spec("true")
    if kind == "link to a volume":
        (volume / "x").mkdir()
        bind(spec, "/volume", volume)
        spec["mounts"].insert(0, spec["mounts"].pop())
    bundle = lab.bundle(spec)
    (bundle / "rootfs" / name[1:]).rmdir()
    (bundle / "rootfs" / name[1:]).symlink_to("/tmp" if kind == "link" else "/volume/x")

    with pytest.raises(OciError, match=r"must be mounted on ordinary directory"):
        lab.create(spec, bundle=bundle)


@pytest.mark.parametrize("destination", ["/proc", "//proc", "/proc/", "/x/../proc", "/proc/self/attr", "/proc/sys"])
def test_cve_2023_28642_nothing_is_mounted_over_proc(lab: Lab, volume: Path, destination: str) -> None:
    """A volume that an image declares there would be written to instead of the kernel; also CVE-2019-16884."""
    with pytest.raises(OciError, match=r'cannot be mounted (at "/proc"|because it is inside /proc)'):
        lab.create(bind(lab.spec("true"), destination, volume))


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "proc/self/attr"])
def test_cve_2019_19921_a_link_into_proc_is_inside_proc(lab: Lab, volume: Path, target: str) -> None:
    spec = bind(lab.spec("true"), "/innocent", volume)
    bundle = lab.bundle(spec)
    (bundle / "rootfs/innocent").symlink_to(target)

    with pytest.raises(OciError, match=r"because it is inside /proc"):
        lab.create(spec, bundle=bundle)


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("name", ["proc", "sys"])
def test_cve_2023_27561_proc_in_a_shared_volume(lab: Lab, volume: Path, name: str, starts: int) -> None:
    """An image's link leads /proc into a volume, where another container swaps directory and link: always refused."""
    (volume / "real/self/attr").mkdir(parents=True)
    (volume / "swap").symlink_to("/tmp")
    spec = bind(lab.spec("true"), "/volume", volume)
    spec["mounts"].insert(0, spec["mounts"].pop())  # before /proc is
    bundle = lab.bundle(spec)
    (bundle / "rootfs" / name).rmdir()
    (bundle / "rootfs" / name).symlink_to("/volume/real")

    with exchanging(volume / "real", volume / "swap"):
        outcomes = {attempt(lab, spec, bundle) for _ in range(starts)}

    assert len(outcomes) == 1
    assert f"must be mounted on ordinary directory: /{name}" in outcomes.pop()
    assert {path.name for path in volume.rglob("*")} == {"real", "swap", "self", "attr"}


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2025_52881_what_is_written_to_proc_arrives_there(lab: Lab, volume: Path, starts: int) -> None:
    """A sysctl goes to the kernel whatever becomes of the container's /proc, and so does nothing to a look-alike."""
    parameter = "sys/net/ipv4/ip_forward"
    (volume / parameter).parent.mkdir(parents=True)
    (volume / parameter).write_text("0\n")
    spec = bind(lab.spec("cat", f"/proc/{parameter}"), "/volume", volume)
    spec["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    bundle = lab.bundle(spec)
    false_proc = bundle / "rootfs/proc" / parameter
    false_proc.parent.mkdir(parents=True)
    false_proc.write_text("0\n")
    (bundle / "rootfs/link").symlink_to("/volume")

    assert lab.run(spec, bundle=bundle).output == "1\n"
    with exchanging(bundle / "rootfs/proc", bundle / "rootfs/link"):
        for _ in range(starts):
            attempt(lab, spec, bundle)

    assert {(volume / parameter).read_text(), *(path.read_text() for path in bundle.rglob("ip_forward"))} == {"0\n"}


# -- the targets of mounts


@pytest.mark.parametrize("link", ["absolute", "climbing", "/proc/1/root"])
@pytest.mark.parametrize("kind", ["bind", "file", "tmpfs", "cgroup", "device"])
def test_cve_2021_30465_a_link_does_not_lead_out_of_the_root(lab: Lab, outside: Path, kind: str, link: str) -> None:
    """What is mounted or made behind a symlink lands in the container, or is refused."""
    before = snapshot(outside)
    (lab.base / "data").mkdir()
    (lab.base / "file").write_text("")
    found = f"[ -c /mnt/link/new/node ] && echo made; grep -q ' {outside}/new ' /proc/mounts && echo mounted"
    spec = shell(lab, f"touch /mnt/link/made /mnt/link/new/made 2>/dev/null; {found}")
    if kind == "device":
        spec["linux"]["devices"] = [{"path": "/mnt/link/new/node", "type": "c", "major": 1, "minor": 3}]
    elif kind in {"bind", "file"}:
        bind(spec, "/mnt/link/new", lab.base / ("data" if kind == "bind" else "file"))
    else:
        spec["mounts"].append({"destination": "/mnt/link/new", "type": kind, "source": kind})
    bundle = lab.bundle(spec)
    (bundle / "rootfs/mnt").mkdir()
    targets = {"absolute": str(outside), "climbing": f"{'../' * 20}{outside}"}
    (bundle / "rootfs/mnt/link").symlink_to(targets.get(link, f"/proc/1/root{outside}"))

    outcome = attempt(lab, spec, bundle)

    if link == "/proc/1/root":
        assert "Too many levels of symbolic links" in outcome
    else:
        assert outcome == ("made\n" if kind == "device" else "mounted\n")
    assert snapshot(outside) == before


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2021_30465_exchanged_targets(lab: Lab, volume: Path, outside: Path, starts: int) -> None:
    """A neighbour swaps a directory of a shared volume for a link to the host while mounts are made on it."""
    (volume / "real/target").mkdir(parents=True)
    (outside / "target").mkdir()
    (volume / "swap").symlink_to(outside)
    (lab.base / "data").mkdir()
    (lab.base / "data/secret").write_text("")
    before = snapshot(outside)
    script = "grep -q /target /proc/self/mountinfo && echo inside || echo lost"
    spec = bind(shell(lab, script), "/vol", volume)
    bind(spec, "/vol/real/target", lab.base / "data")
    bundle = lab.bundle(spec)

    assert lab.run(spec, bundle=bundle).output == "inside\n"
    with exchanging(volume / "real", volume / "swap"):
        outcomes = {attempt(lab, spec, bundle) for _ in range(starts)}

    assert "lost\n" not in outcomes
    assert snapshot(outside) == before


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2024_45310_nothing_is_made_on_the_host(lab: Lab, volume: Path, outside: Path, starts: int) -> None:
    """Directories, files and nodes that a mount or a device needs are made below the container's root only."""
    (volume / "real").mkdir()
    (volume / "swap").symlink_to(outside)
    (lab.base / "data").mkdir()
    (lab.base / "file").write_text("")
    before = snapshot(outside)
    spec = bind(shell(lab, "pwd"), "/vol", volume)
    bundle = lab.bundle(spec)

    def attempt_to_make(number: str) -> str:
        spec["mounts"] = spec["mounts"][:5]
        bind(spec, f"/vol/real/directory{number}/deep", lab.base / "data")
        bind(spec, f"/vol/real/file{number}", lab.base / "file")
        node = {"path": f"/vol/real/node{number}", "type": "c", "major": 1, "minor": 3}
        spec["linux"]["devices"] = [node, {"path": f"/vol/real/pipe{number}", "type": "p"}]
        spec["process"]["cwd"] = f"/vol/real/work{number}"
        (bundle / "config.json").write_text(json.dumps(spec))
        return attempt(lab, spec, bundle)

    assert attempt_to_make("") == "/vol/real/work\n"
    assert set(os.listdir(volume / "real")) == {"directory", "file", "node", "pipe", "work"}
    with exchanging(volume / "real", volume / "swap"):
        for number in range(starts):
            attempt_to_make(str(number))

    assert snapshot(outside) == before


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2021_30465_what_is_copied_up_stays_in_its_file_system(lab: Lab, volume: Path, starts: int) -> None:
    """Once it is mounted, its name may lead to another volume: nothing is written there."""
    other = lab.base / "other"
    other.mkdir()
    (volume / "real").mkdir()
    for number in range(20):
        (volume / f"real/planted{number}").write_text("")
    (volume / "swap").symlink_to("/other")
    spec = shell(lab, "grep -c ' /vol/real tmpfs ' /proc/mounts; ls /vol/real | wc -l")
    bind(bind(spec, "/other", other), "/vol", volume)
    options = ["tmpcopyup", "rprivate"]
    spec["mounts"].append({"destination": "/vol/real", "type": "tmpfs", "source": "tmpfs", "options": options})
    bundle = lab.bundle(spec)

    assert lab.run(spec, bundle=bundle).output == "1\n20\n"
    with exchanging(volume / "real", volume / "swap"):
        for _ in range(starts):
            attempt(lab, spec, bundle)
            assert os.listdir(other) == []


@pytest.mark.parametrize("link", ["absolute", "climbing"])
@pytest.mark.parametrize("name", ["hosts", "resolv.conf", "hostname"])
def test_cve_2024_5154_files_of_the_network_are_mounted_inside(lab: Lab, outside: Path, name: str, link: str) -> None:
    """/etc may lead anywhere: neither is a file made outside, nor one covered; also CVE-2024-9341."""
    before = snapshot(outside)
    (lab.base / name).write_text("ours\n")
    spec = bind(shell(lab, f"cat /etc/{name}"), f"/etc/{name}", lab.base / name)
    bundle = lab.bundle(spec)
    (bundle / "rootfs/etc/passwd").unlink()
    (bundle / "rootfs/etc").rmdir()
    (bundle / "rootfs/etc").symlink_to(outside if link == "absolute" else f"{'../' * 20}{outside}")

    assert lab.run(spec, bundle=bundle).output == "ours\n"

    assert snapshot(outside) == before


@pytest.mark.parametrize("link", ["absolute", "climbing"])
@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_cve_2024_9675_parts_of_a_root_are_mounted_inside(lab: Lab, outside: Path, kind: str, link: str) -> None:
    """A snapshot of several mounts may name targets that are links in the first of them."""
    image = make_root(lab.base / "image")
    (image / "link").symlink_to(outside if link == "absolute" else f"{'../' * 20}{outside}")
    (image / str(outside).lstrip("/")).mkdir(parents=True)
    data = lab.base / "data"
    data.mkdir()
    (data / "part").write_text("")
    options = ("rbind", "ro") if kind == "bind" else ("size=1m",)
    mounts = (RootfsMount("bind", str(image), "", ("rbind", "rw")), RootfsMount(kind, str(data), "link", options))
    spec = shell(lab, f"cd {outside} && ls; touch here && echo writable; grep -c ' {outside} ' /proc/mounts")
    bundle = lab.bundle(spec, root=False)
    (bundle / "rootfs").mkdir()
    # With hooks that look at it, the host sees the root too.
    spec["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    before = snapshot(outside)

    output = lab.run(spec, bundle=bundle, rootfs=mounts).output

    assert output.split() == (["part", "1"] if kind == "bind" else ["writable", "1"]) or "Read-only" in output
    assert snapshot(outside) == before


# -- /dev


def test_cve_2026_41579_a_link_at_dev_is_not_followed(lab: Lab, outside: Path) -> None:
    """Nothing is made, replaced or removed where an image's /dev leads; also CVE-2026-47766."""
    before = snapshot(outside)
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    (bundle / "rootfs/dev").rmdir()
    (bundle / "rootfs/dev").symlink_to(outside)

    with pytest.raises(OciError, match=r"Too many levels of symbolic links \(dev\)"):
        lab.create(spec, bundle=bundle)

    assert snapshot(outside) == before


@pytest.mark.parametrize("options", [("rw",), ("ro",)])
def test_cve_2026_47766_a_link_to_dev_is_no_place_for_a_volume(lab: Lab, outside: Path, options: tuple[str]) -> None:
    """What would be made in /dev would be made in a directory of the host's that the user gave as something else."""
    before = snapshot(outside)
    spec = bind(lab.spec("true"), "/data", outside, *options)
    bundle = lab.bundle(spec)
    (bundle / "rootfs/data").symlink_to("/dev")

    with pytest.raises(OciError, match='"/data" cannot be mounted because it is a link to /dev'):
        lab.create(spec, bundle=bundle)

    assert snapshot(outside) == before


@pytest.mark.parametrize("terminal", [False, True])
def test_cve_2026_88264_the_images_dev_is_never_used(lab: Lab, outside: Path, terminal: bool) -> None:
    """Without a mount for /dev a fresh one is made, and what the image has there is not seen; also CVE-2026-88265."""
    before = snapshot(outside)
    spec = without_dev(shell(lab, "stat -c '%F' /dev/null; ls /dev/planted; grep ' /dev ' /proc/mounts"))
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    spec["mounts"] += [DEVPTS] * terminal
    spec["process"]["terminal"] = terminal
    bundle = lab.bundle(spec)
    for name in ("console", "null", "ptmx", "stdin", "stdout", "stderr", "tty", "planted"):
        (bundle / "rootfs/dev" / name).symlink_to(outside / "file")

    if terminal:
        lab.running(spec, bundle=bundle)
    else:
        lines = lab.run(spec, bundle=bundle).output.splitlines()
        assert lines[0] == "character special file"
        assert "No such file" in lines[1]
        assert lines[2].startswith("tmpfs /dev tmpfs")

    assert snapshot(outside) == before


def false_dev(lab: Lab, outside: Path) -> tuple[Spec, Path]:
    """Return the spec of a container whose /dev is a directory that others may change, and that directory."""
    dev = lab.base / "dev"
    dev.mkdir()
    os.mknod(dev / "null", 0o020666, os.makedev(1, 3))
    spec = bind(without_dev(lab.spec("true")), "/dev", dev)
    return bind(spec, "/outside", outside), dev


@pytest.mark.parametrize("kind", ["link", "link to a device", "file", "other device", "nothing"])
def test_cve_2025_31133_a_false_null_device_masks_nothing(lab: Lab, outside: Path, kind: str) -> None:
    """Where /dev is the image's affair (a bind mount), what is masked with must be the null device, or all fails."""
    spec, dev = false_dev(lab, outside)
    spec["linux"]["maskedPaths"] = ["/proc/timer_list"]
    os.rename(dev / "null", dev / "real")
    if kind == "file":
        (dev / "null").write_text("")
    elif kind == "other device":
        os.mknod(dev / "null", 0o020666, os.makedev(1, 5))
    elif kind != "nothing":
        (dev / "null").symlink_to("/outside/file" if kind == "link" else "real")

    with pytest.raises(OciError, match=r"/dev/null|maskedPaths"):
        lab.create(spec)


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2025_31133_the_null_device_is_exchanged(lab: Lab, outside: Path, starts: int) -> None:
    """What hides a path is the null device or nothing is started; the host's file is never what is seen there."""
    spec, dev = false_dev(lab, outside)
    spec["process"]["args"] = ["sh", "-c", "[ -c /proc/timer_list ] && wc -c </proc/timer_list"]
    spec["linux"]["maskedPaths"] = ["/proc/timer_list"]
    (dev / "link").symlink_to("/outside/file")
    bundle = lab.bundle(spec)

    assert lab.run(spec, bundle=bundle).output == "0\n"
    with exchanging(dev / "null", dev / "link"):
        outcomes = {attempt(lab, spec, bundle) for _ in range(starts)}

    assert all(text == "0\n" or "/dev/null" in text for text in outcomes), outcomes
    assert (outside / "file").read_text() == "kept"


@pytest.mark.parametrize("victim", ["console", "pts/ptmx"])
def test_cve_2025_52565_the_terminal_is_not_redirected(lab: Lab, outside: Path, victim: str) -> None:
    """Without a devpts of its own there is no pty; and a console behind a link is not mounted on what it names."""
    before = snapshot(outside)
    spec, dev = false_dev(lab, outside)
    (dev / "pts").mkdir()
    (dev / victim).symlink_to("/outside/file" if victim == "console" else "/dev/null")
    spec["mounts"] += [DEVPTS] * (victim == "console")
    spec["process"]["terminal"] = True

    with pytest.raises(OciError, match=f"process.terminal: /dev/{victim}"):
        lab.create(spec)

    assert snapshot(outside) == before


@pytest.mark.parametrize("starts", STARTS)
def test_cve_2025_52565_the_console_is_exchanged(lab: Lab, outside: Path, starts: int) -> None:
    """The pty is mounted on a file of /dev's or of the container's root, and never given another file's place."""
    spec, dev = false_dev(lab, outside)
    (dev / "pts").mkdir()
    spec["mounts"].append(DEVPTS)
    spec["process"] |= {"terminal": True, "args": ["sleep", "1000"], "user": {"uid": 1000, "gid": 1000}}
    (dev / "console").write_text("")
    (dev / "link").symlink_to(outside / "file")
    before = snapshot(outside)
    bundle = lab.bundle(spec)

    lab.remove(lab.running(spec, bundle=bundle))
    with exchanging(dev / "console", dev / "link"):
        for _ in range(starts):
            with suppress(OciError):  # it is no file or device, or was not for a moment
                lab.remove(lab.running(spec, bundle=bundle))

    assert snapshot(outside) == before


def test_cve_2025_24965_nothing_is_written_into_the_root(lab: Lab, outside: Path) -> None:
    """A runtime that leaves files of its own in a root would write through these; also CVE-2026-55686's names."""
    before = snapshot(outside)
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    root = bundle / "rootfs"
    for name in (".krun_config.json", "krun_config.json", ".wasm", ".dockerenv", "run/.containerenv", "etc/mtab"):
        (root / name).symlink_to(outside / "file")
    whole = snapshot(root)

    assert lab.run(spec, bundle=bundle).status == 0

    assert snapshot(outside) == before
    assert snapshot(root) == whole


@pytest.mark.parametrize("link", ["absolute", "climbing"])
def test_cve_2025_9566_a_working_directory_is_made_inside(lab: Lab, outside: Path, link: str) -> None:
    """Also CVE-2026-55686."""
    before = snapshot(outside)
    spec = lab.spec("/bin/sh", "-c", "pwd")
    spec["process"]["cwd"] = "/link/made"
    bundle = lab.bundle(spec)
    (bundle / "rootfs/link").symlink_to(outside if link == "absolute" else f"{'../' * 20}{outside}")

    assert lab.run(spec, bundle=bundle).output == f"{outside}/made\n"

    assert snapshot(outside) == before
    assert (bundle / f"rootfs{outside}/made").is_dir()


def test_cve_2026_55686_a_working_directory_in_a_volume_is_made_in_it(lab: Lab, volume: Path, outside: Path) -> None:
    """A link that a neighbour has left there does not lead to the host."""
    before = snapshot(outside)
    (volume / "link").symlink_to(outside)
    spec = bind(lab.spec("/bin/sh", "-c", "pwd"), "/vol", volume)
    spec["process"]["cwd"] = "/vol/link/made"

    assert lab.run(spec).output == f"{outside}/made\n"

    assert snapshot(outside) == before


# -- kernel parameters


@pytest.mark.parametrize(
    "name", ["kernel.core_pattern", "vm.drop_caches", "net/../kernel/core_pattern", "kernel.shmmax/../core_pattern", ""]
)
def test_cve_2022_0811_sysctls_of_the_host_are_refused(lab: Lab, name: str) -> None:
    spec = lab.spec("true")
    spec["linux"]["sysctl"] = {name: "|/evil"}

    with pytest.raises(OciError, match=r"linux.sysctl"):
        lab.create(spec)


def test_cve_2022_0811_a_value_is_one_value(lab: Lab) -> None:
    """What reads like a second parameter is written to the first, which does not take it."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    before = pattern.read_text()
    spec = lab.spec("true")
    spec["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/evil"}

    with pytest.raises(OciError, match=r"linux.sysctl: kernel.shm_rmid_forced"):
        lab.create(spec)

    assert pattern.read_text() == before
