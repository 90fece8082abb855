"""Network namespaces without processes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyctrd.network.netns import IdMap, NetworkNamespaces, inside, is_open
from support.pod_networks import command

pytestmark = pytest.mark.root

_MAP = [IdMap(0, 100_000, 1000)]


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[NetworkNamespaces]:
    namespaces = NetworkNamespaces(tmp_path / "netns")
    yield namespaces
    namespaces.sweep([])
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_one_is_there_until_it_is_removed(namespaces: NetworkNamespaces) -> None:
    path = namespaces.create()

    assert is_open(path)
    assert command("ip", "-brief", "link", netns=path).split()[:2] == ["lo", "UNKNOWN"]
    assert "eth0" not in inside(path, lambda: Path("/proc/thread-self/net/dev").read_text())

    namespaces.remove(path)
    namespaces.remove(path)
    assert not is_open(path)
    assert not path.exists()


def test_one_may_belong_to_a_user_namespace(namespaces: NetworkNamespaces) -> None:
    path = namespaces.create_owned(_MAP, _MAP)
    user = namespaces.user_namespace(path)

    def as_its_root(*words: str) -> str:
        return command("nsenter", f"--user={user}", f"--net={path}", "--setuid=0", "--setgid=0", *words)

    assert as_its_root("cat", "/proc/self/uid_map").split() == ["0", "100000", "1000"]
    assert "<LOOPBACK,UP" in as_its_root("ip", "link")
    as_its_root("ip", "link", "add", "mine", "type", "bridge")  # only the owner's root may
    assert "mine" in command("ip", "link", netns=path)

    namespaces.remove(path)
    assert not user.exists()


def test_mappings_that_cannot_be_leave_nothing(namespaces: NetworkNamespaces, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        namespaces.create_owned([IdMap(0, 0, 0)], _MAP)

    assert not list((tmp_path / "netns").iterdir())


def test_a_sweep_leaves_what_is_wanted(namespaces: NetworkNamespaces, tmp_path: Path) -> None:
    wanted, stray, owned = namespaces.create(), namespaces.create(), namespaces.create_owned(_MAP, _MAP)
    unmounted = tmp_path / "netns" / "cni-unmounted"  # a crash between two steps, or a reboot
    unmounted.touch()

    assert set(namespaces.sweep([wanted])) == {stray, owned, namespaces.user_namespace(owned), unmounted}
    assert list((tmp_path / "netns").iterdir()) == [wanted]
    assert is_open(wanted)


def test_what_is_no_namespace_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert not is_open(tmp_path / "file")
    assert not is_open(tmp_path / "nothing")
    before = threading.active_count()
    with pytest.raises(OSError, match="Invalid argument"):
        inside(tmp_path / "file", lambda: None)
    assert threading.active_count() == before
