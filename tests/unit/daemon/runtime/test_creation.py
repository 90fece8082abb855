"""Creating a container: the order, and what failures undo."""

import errno
import hashlib
import io
import json
import os
import platform
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyctr_wire import labels
from pyctr_wire.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from pyctr_wire.oci import image_spec
from pyctrd.cdi.registry import Registry
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.core.descriptors import Descriptor
from pyctrd.core.images import Image
from pyctrd.core.labels import Labels
from pyctrd.core.leases import Lease
from pyctrd.core.mounts import Mount
from pyctrd.core.platforms import Platform, normalize
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.creation import Creator, NotUnpacked, Request
from pyctrd.runtime.exec_spec import ExecOptions
from pyctrd.runtime.log_folders import LogFolders
from pyctrd.runtime.run_options import RunOptions
from pyctrd.runtime.volumes import Volumes
from support.staged_kernel import StagedKernel

NS = "default"
NAME = "docker.io/library/demo:latest"
MACHINE = platform.machine()


class Stores:
    """All stores of a namespace in memory; `steps` is what was asked for, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[str] = []
        self.containers: dict[str, Container] = {}
        self.images: dict[str, Image] = {}
        self.blobs: dict[str, bytes] = {}
        self.chains = {""}
        self.refuses = False

    def blob(self, media_type: str, data: bytes) -> image_spec.Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return image_spec.Descriptor(media_type, digest, len(data))

    def add_image(self, config: dict[str, object], architecture: str = MACHINE, *, indexed: bool = False) -> None:
        document = {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "1" * 64]},
            "config": config,
        }
        made = self.blob(image_spec.OCI_CONFIG, json.dumps(document).encode())
        manifest = self.blob(image_spec.OCI_MANIFEST, image_spec.encode(image_spec.Manifest(made, ())))
        if indexed:
            entry = image_spec.Descriptor(
                manifest.media_type, manifest.digest, manifest.size, {}, image_spec.Platform("linux", architecture)
            )
            manifest = self.blob(image_spec.OCI_INDEX, image_spec.encode(image_spec.Index((entry,))))
        self.images[NAME] = Image(NAME, Descriptor(manifest.media_type, manifest.digest, manifest.size, {}))
        self.chains.add("sha256:" + "1" * 64)


class Containers(Stores):
    def get(self, ns: str, container_id: str, /) -> Container:
        if container_id not in self.containers:
            raise NotFound(container_id)
        return self.containers[container_id]

    def create(self, ns: str, container: Container, /) -> Container:
        self.steps.append("container")
        if self.refuses or container.id in self.containers:
            raise AlreadyExists(container.id)
        self.containers[container.id] = container
        return container

    def update(self, ns: str, container: Container, mask: Sequence[str], /) -> Container:
        self.steps.append(f"update {','.join(mask)}")
        return container


class Images:
    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def get(self, ns: str, name: str, /) -> Image:
        if name not in self.stores.images:
            raise NotFound(name)
        return self.stores.images[name]

    def list(self, ns: str, filters: Sequence[str] = (), /) -> Sequence[Image]:
        return list(self.stores.images.values())


class Blobs:
    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def open_blob(self, ns: str, digest: str, /) -> tuple[int, int]:
        if digest not in self.stores.blobs:
            raise NotFound(digest)
        fd = os.memfd_create("blob")
        with io.FileIO(os.dup(fd), "w") as file:
            file.write(self.stores.blobs[digest])
        os.lseek(fd, 0, os.SEEK_SET)
        return fd, len(self.stores.blobs[digest])


class Snapshots:
    default = "overlayfs"

    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def named(self, snapshotter: str) -> "Snapshots":
        return self

    def prepare(self, ns: str, key: str, parent: str, labels: Labels, lease: str = "") -> Sequence[Mount]:
        self.stores.steps.append(f"snapshot under {lease and 'a lease'}")
        if parent not in self.stores.chains:
            raise NotFound(parent)
        return self.mounts(ns, key)

    def mounts(self, ns: str, key: str) -> Sequence[Mount]:
        return [Mount("bind", str(self.stores.folder), options=("rbind",))]

    def remove(self, ns: str, key: str) -> None:
        self.stores.steps.append("snapshot removed")


class Leases:
    def __init__(self, stores: Stores) -> None:
        self.stores = stores

    def create(self, ns: str, lease: Lease, /) -> Lease:
        self.stores.steps.append("lease")
        assert "containerd.io/gc.expire" in lease.labels
        return lease

    def delete(self, ns: str, lease: str, /) -> None:
        self.stores.steps.append("lease deleted")


@pytest.fixture
def stores(tmp_path: Path) -> Containers:
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/passwd").write_text("web:x:33:44::/www:/bin/sh\n")
    return Containers(rootfs)


@pytest.fixture
def logs(tmp_path: Path) -> LogFolders:
    return LogFolders(tmp_path / "logs")


@pytest.fixture
def belongings(stores: Containers, tmp_path: Path) -> Belongings:
    return Belongings(tmp_path, lambda _, id: id in stores.containers, lambda _: list(stores.containers.values()))


@pytest.fixture
def volumes(belongings: Belongings) -> Volumes:
    return belongings.volumes


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[StagedKernel]:
    with StagedKernel(tmp_path / "kernel") as staged:
        yield staged


@pytest.fixture
def creator(stores: Containers, logs: LogFolders, belongings: Belongings, kernel: StagedKernel) -> Creator:
    return Creator(
        stores, Images(stores), Blobs(stores), Snapshots(stores), Leases(stores), logs, belongings, Registry(()),
        kernel.apparmor,
    )  # fmt: skip


def request(image: str = "demo", **options: Any) -> Request:
    return Request(NS, image, RunOptions(**options), id="c1", name="web")


@pytest.mark.parametrize("indexed", [False, True])
def test_the_order_of_creation(creator: Creator, stores: Containers, tmp_path: Path, indexed: bool) -> None:
    stores.add_image({"Cmd": ["sh"], "User": "web", "StopSignal": "SIGINT"}, indexed=indexed)
    created = creator.create(request(auto_remove=True, interactive=True))
    assert stores.steps == ["lease", "snapshot under a lease", "container", "lease deleted"]
    container = stores.containers["c1"]
    assert container.spec is not None
    spec = json.loads(container.spec.value)
    assert spec["process"]["user"] == {"uid": 33, "gid": 44, "additionalGids": [44]}
    assert container.labels[labels.NAME] == "web"
    assert container.labels[labels.STOP_SIGNAL] == "SIGINT"
    assert container.labels[labels.AUTO_REMOVE] == container.labels[labels.INTERACTIVE] == "true"
    assert container.labels[labels.LOG_PATH] == f"{tmp_path}/logs/default/c1/json.log"
    assert created.log_uri == f"json-file://{tmp_path}/logs/default/c1/json.log"
    assert not (tmp_path / "logs").exists()  # the shim makes it
    assert (container.image, container.snapshot_key) == (NAME, "c1")


@pytest.mark.parametrize(
    ("options", "profile"),
    [
        ({}, "pyctr-default"),
        ({"privileged": True}, None),
        ({"privileged": True, "security_options": ("apparmor=pyctr-default",)}, "pyctr-default"),
        ({"security_options": ("apparmor=unconfined",)}, None),
        ({"security_options": ("apparmor:mine", "no-new-privileges")}, "mine"),
    ],
)
def test_a_container_is_confined_unless_it_asks_not_to_be(
    creator: Creator, stores: Containers, options: dict[str, Any], profile: str | None
) -> None:
    stores.add_image({"Cmd": ["sh"]})
    creator.create(request(**options))
    spec = stores.containers["c1"].spec
    assert spec is not None
    assert json.loads(spec.value)["process"].get("apparmorProfile") == profile


def test_without_a_parser_only_who_names_the_default_profile_is_refused(
    creator: Creator, stores: Containers, kernel: StagedKernel
) -> None:
    kernel.parser.unlink()
    stores.add_image({"Cmd": ["sh"]})
    with pytest.raises(FailedPrecondition, match=r"pyctr-default: .* install the package apparmor"):
        creator.create(request(security_options=("apparmor=pyctr-default",)))
    creator.create(request())
    spec = stores.containers["c1"].spec
    assert spec is not None
    assert "apparmorProfile" not in json.loads(spec.value)["process"]


@pytest.mark.parametrize("network", ["none", "host"])
@pytest.mark.parametrize("auto_remove", [False, True])
def test_a_container_has_network_files_of_its_own(
    creator: Creator, stores: Containers, belongings: Belongings, tmp_path: Path, network: str, auto_remove: bool
) -> None:
    stores.add_image({"Cmd": ["sh"]})
    creator.create(request(network=network, hostname="box.example.com", auto_remove=auto_remove))
    sources = {target: mount["source"] for target, mount in mounts_of(stores.containers["c1"]).items()}
    assert Path(sources["/etc/hostname"]).read_text() == "box.example.com\n"
    assert stat.S_IMODE(os.stat(sources["/etc/hostname"]).st_mode) == 0o644
    if network == "host":
        assert sources.get("/etc/hosts", "/etc/hosts") == "/etc/hosts"
    else:
        hosts = Path(sources["/etc/hosts"]).read_text().splitlines()
        assert [line for line in hosts if line.startswith("127.")] == [
            "127.0.0.1\tlocalhost", "127.0.1.1\tbox.example.com box"
        ]  # fmt: skip
        assert "nameserver" not in Path(sources["/etc/resolv.conf"]).read_text()
    belongings.sweep()
    belongings.container_gone(NS, "c1")
    assert Path(sources["/etc/hostname"]).exists()
    stores.containers.clear()
    belongings.container_gone(NS, "c1")
    assert os.listdir(tmp_path / "network") == []


def test_a_container_that_cannot_be_leaves_no_network_files(
    creator: Creator, stores: Containers, tmp_path: Path
) -> None:
    stores.add_image({"Cmd": ["sh"]})
    stores.refuses = True
    with pytest.raises(AlreadyExists):
        creator.create(request())
    assert os.listdir(tmp_path / "network") == []


def mounts_of(container: Container) -> dict[str, dict[str, Any]]:
    assert container.spec is not None
    return {mount["destination"]: mount for mount in json.loads(container.spec.value)["mounts"]}


def test_volumes_start_with_what_the_image_has(creator: Creator, stores: Containers, volumes: Volumes) -> None:
    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data/": {}, "/etc": {}, "empty": {}, "/bound/": {}}})
    (stores.folder / "srv").mkdir(mode=0o750)
    (stores.folder / "srv/file").write_text("of the image")
    (stores.folder / "data").symlink_to("/srv")
    mine = Mount("bind", str(stores.folder), "/bound", ("rbind", "rprivate", "ro"))
    creator.create(request(mounts=(Mount("volume", "", "/more", ("rprivate", "ro")), mine)))
    mounts = mounts_of(stores.containers["c1"])
    found = {one.target: one for one in volumes.list(NS)}
    assert found.keys() == {"/data", "/etc", "/empty", "/more"}
    for target, volume in found.items():
        assert (volume.container, volume.used) == ("c1", True)
        assert (mounts[target]["type"], mounts[target]["source"]) == ("bind", str(volume.path))
    assert mounts["/bound"]["source"] == str(stores.folder)
    assert mounts["/data"]["options"] == ["rbind", "rprivate", "rw"]
    assert mounts["/more"]["options"] == ["rbind", "rprivate", "ro"]
    data = found["/data"].path
    assert (data / "file").read_text() == "of the image"
    assert stat.S_IMODE(data.stat().st_mode) == 0o750
    assert os.listdir(found["/empty"].path) == []
    assert (found["/etc"].path / "passwd").exists()


def test_volumes_with_names_are_shared_and_kept(creator: Creator, stores: Containers, belongings: Belongings) -> None:
    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data": {}}})
    (stores.folder / "data").mkdir()
    (stores.folder / "data/file").write_text("of the image")
    wanted = (
        Mount("volume", "mine", "/data", ("rprivate", "ro")),
        Mount("volume", "bare", "/data/", ("rprivate", "rw", "nocopy")),
    )
    creator.create(request(mounts=wanted[:1], auto_remove=True))
    mounts = mounts_of(stores.containers["c1"])
    assert mounts["/data"]["options"] == ["rbind", "rprivate", "ro"]
    mine = Path(mounts["/data"]["source"])
    assert (mine / "file").read_text() == "of the image"
    assert belongings.volumes.list(NS) == []
    stores.containers.clear()
    creator.create(request(mounts=wanted[1:]))
    mounts = mounts_of(stores.containers["c1"])
    assert mounts["/data"]["options"] == ["rbind", "rprivate", "rw"]
    assert os.listdir(mounts["/data"]["source"]) == []
    assert [one.name for one in belongings.named_volumes.list(NS)] == ["bare", "mine"]


@pytest.mark.parametrize("path", ["/../../../..{}", "/absolute", "/climbing", "/absolute/inner", "/nested/absolute"])
def test_cve_2022_23648_a_volume_starts_with_nothing_of_the_hosts(
    creator: Creator, stores: Containers, volumes: Volumes, tmp_path: Path, path: str
) -> None:
    """Whatever an image declares and links, what is copied into a volume is the image's."""
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    for folder in (secret, secret / "inner"):
        (folder / "shadow").write_text("of the host")
    (stores.folder / "absolute").symlink_to(secret)
    (stores.folder / "climbing").symlink_to("../" * 20 + str(secret))
    (stores.folder / "nested").mkdir()
    (stores.folder / "nested/absolute").symlink_to(secret)
    stores.add_image({"Cmd": ["sh"], "Volumes": {path.format(secret): {}}})

    creator.create(request())

    (volume,) = volumes.list(NS)
    assert os.listdir(volume.path) == []


def test_volumes_that_cannot_be_marked_to_stay_are_no_reason_to_fail(
    creator: Creator, stores: Containers, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data": {}}})
    monkeypatch.setattr(volumes, "keep", full)
    (warning,) = creator.create(request()).warnings
    assert "go with the container" in warning
    assert "snapshot removed" not in stores.steps
    assert len(volumes.list(NS)) == 1


def test_volumes_of_a_container_with_rm_are_not_kept(creator: Creator, stores: Containers, volumes: Volumes) -> None:
    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data": {}}})
    creator.create(request(auto_remove=True))
    volumes.container_gone(NS, "c1")
    assert len(volumes.list(NS)) == 1
    del stores.containers["c1"]
    volumes.container_gone(NS, "c1")
    assert volumes.list(NS) == []


@pytest.mark.parametrize(
    "path", ["/", "/proc", "proc/x", "/sys/fs/cgroup", "/dev/", "/etc/passwd", "/a/../..", "/../../proc"]
)
def test_cve_2022_23648_volumes_that_cannot_be(creator: Creator, stores: Containers, tmp_path: Path, path: str) -> None:
    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data": {}, path: {}}})
    with pytest.raises((InvalidArgument, FailedPrecondition)):
        creator.create(request())
    assert not stores.containers
    assert not list((tmp_path / "volumes").rglob("*"))


def test_cve_2026_53488_image_labels_do_not_steer(creator: Creator, stores: Containers) -> None:
    """An image cannot have its container restarted, removed or logged by a program."""
    evil = {"containerd.io/restart.loguri": "binary:///x", "pyctr.io/auto-remove": "true", "nerdctl/x": "y"}
    stores.add_image({"Cmd": ["sh"], "Labels": {**evil, "vendor": "me"}})
    creator.create(request(labels={"mine": "1"}))
    found = stores.containers["c1"].labels
    assert not evil.keys() & found.keys()
    assert (found["vendor"], found["mine"]) == ("me", "1")


@pytest.mark.parametrize("rounds", [25, pytest.param(2500, marks=[pytest.mark.full, pytest.mark.timeout(900)])])
def test_cve_2021_21334_containers_made_at_once_share_nothing(
    creator: Creator, stores: Containers, rounds: int
) -> None:
    """Each has its own environment, mounts and labels, however many are made at the same time."""
    stores.add_image({"Cmd": ["sh"], "Env": ["SHARED=image"], "Volumes": {"/data": {}}})

    def make(number: int) -> None:
        options = RunOptions(
            env=(f"OWN={number}",), labels={f"label{number}": ""}, mounts=(Mount("tmpfs", "tmpfs", f"/t{number}", ()),),
            privileged=number % 2 == 0, auto_remove=True,
        )  # fmt: skip
        creator.create(Request(NS, "demo", options, id=f"c{number}", name=f"n{number}"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(make, range(4 * rounds)))

    for number in range(4 * rounds):
        container = stores.containers[f"c{number}"]
        assert container.spec is not None
        process = json.loads(container.spec.value)["process"]
        own = [entry for entry in process["env"] if not entry.startswith(("PATH=", "HOSTNAME=", "HOME="))]
        assert own == ["SHARED=image", f"OWN={number}"]
        assert [name for name in container.labels if name.startswith("label")] == [f"label{number}"]
        targets = mounts_of(container)
        assert [target for target in targets if target.startswith("/t")] == [f"/t{number}"]
        assert f"/c{number}/" in targets["/data"]["source"]
        assert f"/c{number}/" in targets["/etc/hostname"]["source"]
        assert ("CAP_SYS_ADMIN" in process["capabilities"]["effective"]) == (number % 2 == 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"user": "nobody"}, InvalidArgument),
        ({"network": "bridge"}, InvalidArgument),
        ({"devices": ("/no/such",)}, InvalidArgument),
    ],
)
def test_a_bad_option_leaves_nothing(
    creator: Creator, stores: Containers, tmp_path: Path, options: dict[str, Any], error: type[Exception]
) -> None:
    stores.add_image({"Cmd": ["sh"]})
    with pytest.raises(error):
        creator.create(request(**options))
    assert stores.steps == ["lease", "snapshot under a lease", "snapshot removed", "lease deleted"]
    assert not (tmp_path / "logs").exists()


def test_a_record_that_cannot_be_made_leaves_nothing(creator: Creator, stores: Containers, tmp_path: Path) -> None:
    stores.add_image({"Cmd": ["sh"], "Volumes": {"/data": {}}})
    stores.refuses = True
    with pytest.raises(AlreadyExists):
        creator.create(request())
    assert stores.steps[-2:] == ["snapshot removed", "lease deleted"]
    assert not list((tmp_path / "volumes").rglob("*"))


def test_images_that_are_not_here_or_not_unpacked(creator: Creator, stores: Containers) -> None:
    with pytest.raises(NotFound):
        creator.create(request())
    stores.add_image({"Cmd": ["sh"]})
    stores.chains = {""}
    with pytest.raises(NotUnpacked):
        creator.create(request())
    assert not stores.containers
    with pytest.raises(NotFound):
        creator.create(request("other"))


def test_images_are_found_by_digest(creator: Creator, stores: Containers) -> None:
    stores.add_image({"Cmd": ["sh"]})
    creator.create(request(stores.images[NAME].target.digest[7:19]))
    assert stores.containers["c1"].image == NAME


def test_an_image_for_other_machines(creator: Creator, stores: Containers) -> None:
    stores.add_image({"Cmd": ["sh"]}, "s390x", indexed=True)
    with pytest.raises(FailedPrecondition, match=f"nothing for {normalize(Platform('linux', MACHINE))}"):
        creator.create(request())


@pytest.mark.parametrize("platform", [None, Platform("linux", "s390x")])
def test_an_image_without_an_index_for_other_machines(
    creator: Creator, stores: Containers, platform: Platform | None
) -> None:
    """Its configuration says what it is for."""
    stores.add_image({"Cmd": ["sh"]}, "s390x" if platform is None else MACHINE)
    with pytest.raises(FailedPrecondition, match=r"is for linux/\w+, not for linux/\w+"):
        creator.create(replace(request(), platform=platform))


def test_labels_of_ours_are_not_the_users_to_set(creator: Creator, stores: Containers) -> None:
    """A name given so would be no unique one."""
    stores.add_image({"Cmd": ["sh"]})
    with pytest.raises(InvalidArgument, match=r"pyctr\.io/name"):
        creator.create(request(labels={"pyctr.io/name": "taken"}))
    assert stores.steps == []


def test_stop_signals(creator: Creator, stores: Containers) -> None:
    """One that is none is an error of the user's; an image's is passed over, so that its containers can be stopped."""
    stores.add_image({"Cmd": ["sh"], "StopSignal": "SIGNONSENSE"})
    for wrong in ("NONSENSE", "99", "RTMIN+99"):
        with pytest.raises(InvalidArgument, match=f"{wrong!r} is not a signal".replace("+", r"\+")):
            creator.create(request(stop_signal=wrong))
    creator.create(request())
    assert labels.STOP_SIGNAL not in stores.containers["c1"].labels
    del stores.containers["c1"]
    creator.create(request(stop_signal="rtmin+3"))
    assert stores.containers["c1"].labels[labels.STOP_SIGNAL] == "rtmin+3"


@pytest.mark.parametrize("container_id", ["../x", "a/b", ".", "a..b"])
def test_ids_that_are_no_file_names(creator: Creator, stores: Containers, container_id: str) -> None:
    stores.add_image({"Cmd": ["sh"]})
    with pytest.raises(InvalidArgument):
        creator.create(Request(NS, "demo", RunOptions(), id=container_id))


def test_execs_are_resolved_in_the_containers_files(creator: Creator, stores: Containers) -> None:
    spec = AnyValue("", json.dumps({"process": {"env": ["A=1"], "cwd": "/"}}).encode())
    stores.containers["c1"] = Container("c1", spec=spec, snapshotter="overlayfs", snapshot_key="c1")
    process = json.loads(creator.exec_process(NS, "c1", ExecOptions(args=("ls",), user="web")))
    assert process["user"]["uid"] == 33
    with pytest.raises(InvalidArgument):
        creator.exec_process(NS, "c1", ExecOptions(args=("ls",), user="nobody"))


def test_log_drivers(logs: LogFolders) -> None:
    assert logs.choose(NS, "c", "none", {}) == ("none", "attach:", "")
    assert logs.choose(NS, "c", "journald", {})[1] == "journald:"
    assert logs.choose(NS, "c", "cri", {})[1].startswith("cri:///")
    assert logs.choose(NS, "c", "", {"max-size": "1m", "max-file": "2"})[1].endswith("json.log?max-size=1m&max-file=2")
    for driver, options in (("syslog", {}), ("json-file", {"x": "1"}), ("cri", {"max-size": "1m"}),
                            ("", {"max-size": "1x"}), ("", {"max-size": ""}), ("", {"max-file": "0"})):  # fmt: skip
        with pytest.raises(InvalidArgument):
            logs.choose(NS, "c", driver, options)


def test_logs_are_listed_measured_and_removed(logs: LogFolders, tmp_path: Path) -> None:
    assert logs.list() == []
    for name in ("here", "gone"):
        (tmp_path / "logs" / NS / name).mkdir(parents=True)
        (tmp_path / "logs" / NS / name / "json.log").write_text("x" * 10)
    assert logs.size(NS) == (2, 20)
    assert sorted(logs.list()) == [(NS, "gone"), (NS, "here")]
    logs.remove(NS, "gone")
    assert logs.size(NS) == (1, 10)
    logs.remove(NS, "here")
    logs.remove(NS, "here")
    assert not (tmp_path / "logs" / NS).exists()
