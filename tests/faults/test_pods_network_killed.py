"""The daemon is killed while a pod's network is made or given back: no address and no namespace is lost."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from pyctr_wire.cri import runtime_pb2
from support.cri_client import POD, CriClient
from support.daemon_process import DaemonProcess, wait_until
from support.footprint import unchanged

pytestmark = pytest.mark.root

# It gives away addresses, as files, and waits where it is told to: before or after it has done so.
_PLUGIN = """#!/bin/sh
cd {directory}
stall() {{
    [ -e "stall.$CNI_COMMAND.$1" ] || return
    echo $$ > stalled
    while [ -e "stall.$CNI_COMMAND.$1" ]; do sleep 0.05; done
}}
cat > /dev/null
echo "$CNI_COMMAND $CNI_NETNS" >> asked
stall before
case $CNI_COMMAND in
    ADD) touch "leases/$CNI_CONTAINERID" ;;
    DEL) rm -f "leases/$CNI_CONTAINERID" ;;
esac
stall after
[ $CNI_COMMAND = ADD ] && echo '{{"cniVersion": "1.0.0", "ips": [{{"address": "192.0.2.7/24"}}]}}'
exit 0
"""


class Site:
    """A daemon whose pods' network is the plugin above."""

    def __init__(self, directory: Path, daemon: DaemonProcess) -> None:
        self.directory, self.daemon = directory, daemon
        self.cri = CriClient(daemon)

    def leases(self) -> list[str]:
        return sorted(path.name for path in (self.directory / "leases").iterdir())

    def records(self) -> list[Path]:
        return list((self.daemon.root / "network_records").glob("*"))

    def kill_at(self, command: str, stage: str, call: Callable[[], object]) -> None:
        """Kill the daemon when the plugin has come to that stage of `call`; then the plugin goes on by itself."""
        stall, stalled = self.directory / f"stall.{command}.{stage}", self.directory / "stalled"
        stall.touch()
        with ThreadPoolExecutor(1) as threads:
            done = threads.submit(call)
            wait_until(lambda: stalled.exists() and bool(stalled.read_text().strip()), "the plugin")
            self.daemon.kill()
            with suppress(grpc.RpcError):
                done.result()
        pid = stalled.read_text().strip()
        stall.unlink()
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the plugin")


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests."""
    directory = tmp_path_factory.mktemp("network")
    (directory / "net.d").mkdir()
    (directory / "leases").mkdir()
    (directory / "net.d" / "net.conf").write_text('{"cniVersion": "1.0.0", "name": "net", "type": "stalling"}')
    plugin = directory / "stalling"
    plugin.write_text(_PLUGIN.format(directory=directory))
    plugin.chmod(0o755)
    config = f'[cri.cni]\nconf_dir = "{directory}/net.d"\nbin_dirs = ["{directory}"]\n'
    with DaemonProcess(config=config) as daemon:
        yield Site(directory, daemon)


@pytest.fixture
def site(place: Site) -> Iterator[Site]:
    place.cri.logs.mkdir(exist_ok=True)
    for name in ("asked", "stalled"):
        (place.directory / name).unlink(missing_ok=True)
    with unchanged(place.daemon), place.cri:
        yield place
    assert not place.leases()
    assert not place.records()


@pytest.mark.parametrize("stage", ["before", "after"])
def test_an_attachment_that_was_cut_off_is_undone(site: Site, stage: str) -> None:
    site.kill_at("ADD", stage, lambda: site.cri.run_pod(network=POD))
    assert len(site.leases()) == 1

    site.daemon.start()
    (lost,) = site.cri.pods()
    assert lost.state == runtime_pb2.SANDBOX_NOTREADY
    wait_until(lambda: not site.leases() and not site.records(), "the lease to be given back")

    site.cri.remove_pod(lost.id)
    pod = site.cri.run_pod(network=POD)
    assert site.leases() == [pod.annotations["id"]]


@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_detachment_that_was_cut_off_is_repeated(site: Site, stage: str) -> None:
    pod = site.cri.run_pod(network=POD).annotations["id"]
    site.kill_at("DEL", stage, lambda: site.cri.stop_pod(pod))

    site.daemon.start()
    site.cri.stop_pod(pod)

    assert not site.leases()
    assert not site.records()
    assert [line.split()[0] for line in (site.directory / "asked").read_text().splitlines()] == ["ADD", "DEL", "DEL"]


def test_a_pod_keeps_its_address_when_the_daemon_is_killed(site: Site) -> None:
    pod = site.cri.run_pod(network=POD).annotations["id"]

    site.daemon.restart()

    assert [one.id for one in site.cri.pods()] == [pod]
    site.cri.run_pod("two", network=POD)
    assert len(site.leases()) == 2
