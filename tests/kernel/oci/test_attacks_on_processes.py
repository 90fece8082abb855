"""Published escapes, each by its number: a container's processes get nothing of the host's from who makes them."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctr_shim.oci import forks
from pyctr_shim.oci.errors import OciError
from pyctr_sys.capabilities import NAMES
from pyctr_wire.oci import default_seccomp, default_spec
from support.attackers import X86_ONLY, socketcall
from support.oci_bundle import Lab, Spec, process

pytestmark = pytest.mark.root
WAYS = ("run", "exec", "forked exec")
CGROUPS = {
    "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "ro"],
}  # fmt: skip
EVERYTHING = {name: list(NAMES) for name in ("bounding", "effective", "permitted")}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the process comes to be; an exec is spawned, or forked where it cannot be."""
    if request.param == "forked exec":
        monkeypatch.setattr(forks, "spawn_into", lambda _joiner: None)
    return request.param


@pytest.fixture
def leaky() -> Iterator[list[int]]:
    """Descriptors of the host's directories that a careless runtime would let its children have."""
    opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in ("/", "/etc", "/sys/fs/cgroup")]
    for fd in opened:
        os.set_inheritable(fd, True)
    yield opened
    for fd in opened:
        os.close(fd)


def output_of(lab: Lab, way: str, document: Spec, spec: Spec | None = None, bundle: Path | None = None) -> str:
    """Return what a process prints that a container is run with, or that is executed in one."""
    spec = spec or lab.spec("true")
    spec["process"] = document if way == "run" else {**document, "args": ["sleep", "1000"], "cwd": "/"}
    if bundle:
        (bundle / "config.json").write_text(json.dumps(spec))
    if way == "run":
        return lab.run(spec, bundle=bundle).output
    container = lab.running(spec, bundle=bundle)
    try:
        return lab.exec(container, document).output
    finally:
        lab.remove(container)


def with_host_programs(spec: Spec) -> Spec:
    """Show the container this machine's own programs, read-only, for what busybox cannot do."""
    for name in ("usr", "bin", "lib", "lib64"):
        if os.path.isdir(f"/{name}"):
            item = {"destination": f"/{name}", "type": "bind", "source": f"/{name}", "options": ["rbind", "ro"]}
            spec["mounts"].append(item)
    return spec


# -- the runtime's own descriptors


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 9, 15])
def test_cve_2024_21626_no_directory_through_an_fd(lab: Lab, leaky: list[int], way: str, number: int) -> None:
    """Neither the image's WORKDIR nor an exec's leads to what its parents have open."""
    with pytest.raises(OciError, match=r"process.cwd"):
        output_of(lab, way, process("pwd", cwd=f"/proc/self/fd/{number}"))


@pytest.mark.parametrize("target", ["/proc/self/fd", "/proc/self/fd/../fd", "/proc/thread-self/fd", "/dev/fd"])
def test_cve_2024_21626_no_directory_through_a_link(lab: Lab, leaky: list[int], way: str, target: str) -> None:
    """A link in the image is no better than the path itself."""
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    for fd in leaky:
        (bundle / f"rootfs/link{fd}").symlink_to(f"{target}/{fd}")
    for fd in leaky:
        with pytest.raises(OciError, match=r"process.cwd"):
            output_of(lab, way, process("pwd", cwd=f"/link{fd}"), spec, bundle)


def test_cve_2024_21626_only_three_fds(lab: Lab, leaky: list[int], way: str) -> None:
    """Also none of the container's first process that another could take from it."""
    script = "for fd in /proc/self/fd/* /proc/1/fd/*; do [ -e $fd ] && echo ${fd##*/}; done"

    output = output_of(lab, way, process("sh", "-c", script))

    assert output.split() == ["0", "1", "2"] * 2


# -- identity


def test_cve_2022_29162_nothing_is_inheritable(lab: Lab, way: str) -> None:
    """Also CVE-2022-24769, CVE-2022-27649 and CVE-2022-27650."""
    document = process("grep", "-E", "Cap(Inh|Amb)", "/proc/self/status", capabilities=EVERYTHING)

    output = output_of(lab, way, document)

    assert output.split() == ["CapInh:", "0" * 16, "CapAmb:", "0" * 16]


def test_cve_2026_30892_uid_1_is_uid_1(lab: Lab, way: str) -> None:
    document = process("id", user={"uid": 1, "gid": 1})

    assert output_of(lab, way, document).split() == ["uid=1", "gid=1"]


def test_cve_2023_25173_supplementary_groups(lab: Lab, way: str) -> None:
    """All of the document's, and none of the runtime's own."""
    document = process("id", "-G", user={"uid": 1000, "gid": 7, "additionalGids": [8, 9]})
    before = os.getgroups()
    os.setgroups([*before, 4242])
    try:
        assert output_of(lab, way, document) == "7 8 9\n"
        document["user"].pop("additionalGids")
        assert output_of(lab, way, document) == "7\n"
    finally:
        os.setgroups(before)


def test_cve_2021_43784_endless_maps_are_refused(lab: Lab) -> None:
    """Before a length of them overflows anything."""
    spec = lab.spec("true")
    spec["linux"]["namespaces"].append({"type": "user"})
    maps = [{"containerID": number, "hostID": number, "size": 1} for number in range(10_000)]
    spec["linux"]["uidMappings"] = spec["linux"]["gidMappings"] = maps

    with pytest.raises(OciError, match=r"linux.uidMappings: more than 340 entries"):
        lab.create(spec)


# -- what the kernel offers to a container


def confined(spec: Spec) -> Spec:
    """Give a spec the default profile: capabilities and system calls."""
    spec["process"]["capabilities"] = default_spec.default_process()["capabilities"]
    granted = spec["process"]["capabilities"]["bounding"]
    spec["linux"]["seccomp"] = default_seccomp.default_profile(granted, os.uname().machine)
    return spec


def test_cve_2026_31431_no_sockets_of_the_kernels_crypto(lab: Lab, way: str) -> None:
    """AF_ALG (38) and AF_VSOCK (40) are refused by the default profile; others are not."""
    script = 'for (38, 40, 1) { print syscall(41, $_, 5, 0) < 0 ? $! + 0 : "got", "\\n" }'
    spec = with_host_programs(confined(lab.spec("true")))
    if os.uname().machine != "x86_64":
        script = script.replace("41", "198")  # socket(2) on the others that we know
    document = {**spec["process"], "args": ["/usr/bin/perl", "-e", script]}

    output = output_of(lab, way, document, spec)

    assert output.split() == ["1", "1", "got"]


@X86_ONLY
def test_cve_2026_31431_nor_by_the_call_of_32_bits(lab: Lab) -> None:
    """A program of 64 bits may ask as one of 32 does: the filter is of that architecture too."""
    found = {}
    for family in (38, 40):
        for profile in (confined, lambda spec: spec):
            spec = profile(lab.spec("/ask"))
            bundle = lab.bundle(spec)
            (bundle / "rootfs/ask").write_bytes(socketcall(family))
            (bundle / "rootfs/ask").chmod(0o755)
            found[family, profile is confined] = lab.run(spec, bundle=bundle).status
    if found[38, False] == 139:
        pytest.skip("this kernel has no calls of 32 bits")

    assert {found[38, True], found[40, True]} <= {errno.EPERM, errno.ENOSYS}
    # Without the profile they are to be had, or the kernel has none of that kind.
    assert {found[38, False], found[40, False]} <= {0, errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT}


@pytest.mark.parametrize("confinement", ["default profile", "all capabilities in a user namespace"])
def test_cve_2022_0492_no_release_agent(lab: Lab, confinement: str) -> None:
    """What runs when a cgroup of version 1 empties, on the host and as root, is not to be set from inside."""
    spec = lab.spec("true")
    spec["mounts"].append(CGROUPS)
    script = """
    busybox unshare -U -m -r sh -c 'mount -t cgroup -o memory c /tmp; echo evil >/tmp/release_agent' && echo set
    mount -t cgroup -o memory c /tmp && echo evil >/tmp/release_agent && echo set
    for agent in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do
        { echo evil >$agent; } 2>/dev/null && echo set
    done
    mkdir /sys/fs/cgroup/*/new /sys/fs/cgroup/new 2>/dev/null && echo made
    true
    """
    if confinement == "default profile":
        confined(spec)
    else:
        maps = [{"containerID": 0, "hostID": 100_000, "size": 1000}]
        spec["linux"] |= {"uidMappings": maps, "gidMappings": maps}
        spec["linux"]["namespaces"].append({"type": "user"})
        spec["process"]["capabilities"] = EVERYTHING
    spec["process"]["args"] = ["sh", "-c", script]
    agents = {str(path): path.read_text() for path in Path("/sys/fs/cgroup").glob("*/release_agent")}

    output = lab.run(spec).output

    assert "set" not in output.split()
    assert "made" not in output.split()
    assert {str(path): path.read_text() for path in Path("/sys/fs/cgroup").glob("*/release_agent")} == agents


@pytest.mark.parametrize("own_namespace", [False, True])
def test_cve_2023_25809_cgroups_of_a_user_namespace_are_read_only(lab: Lab, own_namespace: bool) -> None:
    """Also its own, and also where it owns them: `ro` means the mounts that are inside the mount, too."""
    spec = lab.spec(
        "sh", "-c", "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/new && echo made in $d; done; true"
    )
    maps = [{"containerID": 0, "hostID": 0, "size": 1000}]
    spec["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    spec["linux"]["namespaces"] += [{"type": kind} for kind in ("user", *["cgroup"] * own_namespace)]
    spec["mounts"].append(CGROUPS)

    ended = lab.run(spec)

    assert "made" not in ended.output
    assert "Read-only file system" in ended.output


# -- what an image brings along


def test_cve_2025_23266_hooks_get_nothing_of_the_containers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean environment, `/` as directory, no fds; also CVE-2025-23267, CVE-2024-0132 and CVE-2026-24260."""
    monkeypatch.setenv("LD_PRELOAD_TEST", "x")
    out = lab.base / "out"
    spec = lab.spec("true")
    spec["process"] |= {"cwd": "/evil", "env": ["PATH=/evil", "LD_PRELOAD=/evil/evil.so", "LD_LIBRARY_PATH=/evil"]}
    script = f"{{ env; pwd; ls -di / /proc/1/root/; ls /proc/self/fd | wc -l; }} >>{out}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    spec["hooks"] = {kind: [hook] for kind in kinds}
    bundle = lab.bundle(spec)
    (bundle / "rootfs/evil").mkdir()
    (bundle / "rootfs/evil/true").symlink_to("/bin/busybox")
    for name in ("evil.so", "libc.so.6", "libselinux.so.1"):
        (bundle / "rootfs/evil" / name).write_text("not a library")

    lab.run(spec, bundle=bundle)

    lines = out.read_text().split("\n")
    assert not [line for line in lines if "LD_" in line or "evil" in line]
    assert lines.count("/") == 5  # each hook's directory
    assert lines.count("4") == 5  # 0 to 2, and ls's own
    inodes = {line.split()[0] for line in lines if line.endswith((" /", " /proc/1/root/"))}
    assert inodes == {str(os.stat("/").st_ino)}  # it is the host's own


@pytest.mark.parametrize("kind", ["fifo", "endless", "link to the host", "directory"])
def test_cve_2026_47262_a_hostile_passwd_gives_no_home(lab: Lab, way: str, kind: str) -> None:
    """Nobody waits for a FIFO, reads a file without end to it, or leaves the root; also CVE-2024-9676."""
    spec = lab.spec("true")
    bundle = lab.bundle(spec)
    passwd = bundle / "rootfs/etc/passwd"
    passwd.unlink()
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "endless":
        with passwd.open("wb") as file:
            file.truncate(2 << 30)
    elif kind == "directory":
        passwd.mkdir()
    else:
        (lab.base / "passwd").write_text("root:x:0:0::/of/the/host:/bin/sh\n")
        passwd.symlink_to(lab.base / "passwd")

    assert output_of(lab, way, process("sh", "-c", "echo $HOME"), spec, bundle) == "/\n"
