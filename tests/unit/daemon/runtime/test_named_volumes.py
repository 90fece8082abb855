"""Volumes with names: what they start with, and that nobody loses one that is in use."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyctr_wire.errors import FailedPrecondition, InvalidArgument, NotFound
from pyctrd.core.anys import AnyValue
from pyctrd.core.containers import Container
from pyctrd.runtime.belongings import Belongings
from pyctrd.runtime.named_volumes import NamedVolumes

NS = "default"


class World:
    """Volumes, the containers that use them, and an image's directory."""

    def __init__(self, folder: Path) -> None:
        self.containers: dict[str, Container] = {}
        self.belongings = Belongings(
            folder / "root", lambda _, id: id in self.containers, lambda _: list(self.containers.values())
        )
        self.root = folder / "root/named_volumes"
        self.image = folder / "image"
        self.image.mkdir(mode=0o750)
        (self.image / "file").write_text("of the image")
        self.layer_fd = os.open(self.image, os.O_PATH | os.O_DIRECTORY)

    @property
    def volumes(self) -> NamedVolumes:
        return self.belongings.named_volumes

    def add(self, container: str, name: str, *, filled: bool = True) -> Path:
        """Make a container that has the volume."""
        with self.belongings.making(NS, container):
            path = self.volumes.use(NS, container, name, [self.layer_fd] if filled else [])
            spec = json.dumps({"mounts": [{"source": str(path)}]}).encode()
            self.containers[container] = Container(container, spec=AnyValue("", spec))
        return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    os.close(world.layer_fd)


def test_one_is_made_once(world: World) -> None:
    assert world.volumes.create(NS, "data", {"a": "b"}) == "data"
    (one,) = world.volumes.list(NS)
    assert (one.name, one.labels, one.containers) == ("data", {"a": "b"}, ())
    world.volumes.create(NS, "data", {"other": "labels"})
    assert world.volumes.list(NS) == [one]
    assert world.volumes.list("elsewhere") == []
    random = world.volumes.create(NS, "", {})
    assert len(random) == 32
    world.volumes.remove(NS, "data")
    with pytest.raises(NotFound):
        world.volumes.remove(NS, "data")
    world.volumes.remove(NS, random)
    assert os.listdir(world.root / NS) == []


@pytest.mark.parametrize("name", ["x", "../x", ".hidden", "a/b", "a b", "-a", "x" * 201, "0" * 64, "a\n"])
def test_names_that_cannot_be(world: World, name: str) -> None:
    with pytest.raises(InvalidArgument, match="volume name"):
        world.volumes.create(NS, name, {})
    with pytest.raises(InvalidArgument), world.belongings.making(NS, "c1"):
        world.volumes.use(NS, "c1", name, ())
    assert not world.root.exists()
    assert not world.volumes.has(NS, name)


def test_an_empty_one_starts_as_what_the_image_has(world: World) -> None:
    path = world.add("c1", "data")
    assert (path / "file").read_text() == "of the image"
    assert path.stat().st_mode & 0o777 == 0o750
    (path / "file").write_text("changed")
    assert world.add("c2", "data") == path
    assert (path / "file").read_text() == "changed"
    assert [one.containers for one in world.volumes.list(NS)] == [("c1", "c2")]
    assert list(world.add("c3", "other", filled=False).iterdir()) == []
    assert list(world.add("c4", "other").iterdir()) == [], "c3 has it mounted"
    for name in ("c3", "c4"):
        del world.containers[name]
    assert os.listdir(world.add("c5", "other")) == ["file"]
    assert sorted(os.listdir(world.root / NS / "other")) == ["data", "volume.json"]


def test_one_that_is_used_stays(world: World) -> None:
    path = world.add("c1", "data")
    with pytest.raises(FailedPrecondition, match="volume data is in use by container c1"):
        world.volumes.remove(NS, "data")
    below = json.dumps({"mounts": [{"source": f"{path}/sub"}]}).encode()
    world.containers = {"other": Container("other", spec=AnyValue("", below))}
    with pytest.raises(FailedPrecondition, match="other"):
        world.volumes.remove(NS, "data")
    world.containers.clear()
    with suppress(OSError), world.belongings.making(NS, "c2"):
        world.volumes.use(NS, "c2", "data", ())
        with pytest.raises(FailedPrecondition, match="c2"):
            world.volumes.remove(NS, "data")
        raise OSError("the container cannot be made")
    world.belongings.sweep()
    assert (path / "file").exists(), "a volume with a name goes with no container"
    world.volumes.remove(NS, "data")


def test_containers_that_are_made_at_once_share_one_start(world: World) -> None:
    threads = [threading.Thread(target=world.add, args=(f"c{number}", "data")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = world.volumes.list(NS)
    assert len(one.containers) == 8
    assert os.listdir(one.path) == ["file"]


def test_what_a_crash_left_is_swept(world: World) -> None:
    world.volumes.create(NS, "data", {})
    (world.root / NS / ".data-0123/data").mkdir(parents=True)
    world.belongings.sweep()
    assert os.listdir(world.root / NS) == ["data"]


def test_a_copy_under_way_is_not_swept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyctrd.runtime.named_volumes.copy_up", lambda *_: world.belongings.sweep())
    world.add("c1", "data")
    assert sorted(os.listdir(world.root / NS)) == ["data"]
    assert sorted(os.listdir(world.root / NS / "data")) == ["data", "volume.json"]


def test_a_failed_copy_leaves_an_empty_volume(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FailedPrecondition("nested too deeply")

    monkeypatch.setattr("pyctrd.runtime.named_volumes.copy_up", fail)
    with pytest.raises(FailedPrecondition, match="nested"):
        world.add("c1", "data")
    (one,) = world.volumes.list(NS)
    assert (one.containers, os.listdir(one.path), os.listdir(world.root / NS)) == ((), [], ["data"])


def test_a_damaged_manifest_costs_no_data(world: World) -> None:
    path = world.add("c1", "data")
    (path.parent / "volume.json").write_text("{")
    (one,) = world.volumes.list(NS)
    assert (one.name, one.labels, one.containers) == ("data", {}, ("c1",))


def test_sizes(world: World) -> None:
    (world.add("c1", "used") / "file").write_bytes(b"x" * 50_000)
    world.volumes.create(NS, "unused", {})
    count, used, size, unused = world.volumes.size(NS)
    assert (count, used) == (2, 1)
    assert size - unused >= 50_000
