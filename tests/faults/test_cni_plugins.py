"""Plugins that hang, fail and talk nonsense: who did it is said, and nothing of it stays."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pyctrd.network.errors import NetworkNotReady, PluginError
from support.pod_networks import Lab, command, pod

pytestmark = pytest.mark.root

_RESULT = '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.7/24"}]}'
# Each answers for itself. What was asked is in the file `asked`, pids of children in `pids`.
_HEAD = """#!/bin/sh
cd {directory}
echo "$CNI_COMMAND" >> asked
cat > "stdin.$CNI_COMMAND"
env > "environment.$CNI_COMMAND"
"""
_GOOD = f"""[ "$CNI_COMMAND" = ADD ] && echo '{_RESULT}'; exit 0"""
_HANG = "sleep 600 & echo $! >> pids; echo $$ >> pids; wait"


class Scripts:
    """A network with one plugin that is a shell script, with a body for each command that is not to go well."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(directory)
        self.lab.configure({"type": "scripted"}, version="1.1.0")
        self.lab.seconds = 1.0
        self.lab.network = self.lab.started()
        self.write()

    def write(self, **bodies: str) -> None:
        branches = "".join(f"{name}) {body} ;;\n" for name, body in bodies.items())
        program = self.lab.programs / "scripted"
        head = _HEAD.format(directory=self.lab.directory)
        program.write_text(f"{head}case $CNI_COMMAND in\n{branches}*) {_GOOD} ;;\nesac\n")
        program.chmod(0o755)

    def asked(self) -> list[str]:
        path = self.lab.directory / "asked"
        return path.read_text().split() if path.exists() else []

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.lab.directory / "pids").read_text().split()]

    async def set_up(self) -> None:
        self.netns = self.lab.namespaces.create()
        await self.lab.network.set_up(pod(), self.netns)


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    yield scripts
    scripts.lab.close()


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            await asyncio.sleep(0.05)


async def test_a_plugin_that_hangs_is_killed_with_its_children_and_undone(scripts: Scripts) -> None:
    scripts.write(ADD=_HANG)

    with pytest.raises(PluginError, match=r'plugin type="scripted" failed \(add\): .* was not done after 1 s'):
        await scripts.set_up()

    for pid in scripts.pids():
        await until_gone(pid)
    assert scripts.asked() == ["ADD", "DEL"]
    assert not list(scripts.lab.records)


async def test_what_cannot_be_undone_now_is_undone_later(scripts: Scripts) -> None:
    """And the pod is let go meanwhile: it never had a network."""
    scripts.write(ADD="exit 1", DEL=_HANG)
    with pytest.raises(PluginError, match="exit status 1"):
        await scripts.set_up()

    await scripts.lab.network.tear_down(pod(), scripts.netns)
    assert [one.container for one in scripts.lab.records] == ["one"]

    scripts.write()
    await scripts.lab.started().collect([])
    assert not list(scripts.lab.records)
    assert scripts.asked() == ["ADD", "DEL", "DEL", "DEL", "GC"]


async def test_a_delete_that_fails_is_told_and_can_be_repeated(scripts: Scripts) -> None:
    await scripts.set_up()
    scripts.write(DEL="""echo '{"code": 11, "msg": "not now", "details": "the store is locked"}'; exit 1""")

    with pytest.raises(PluginError, match=r"failed \(del\): not now; the store is locked \(code 11\)") as caught:
        await scripts.lab.network.tear_down(pod(), scripts.netns)
    assert caught.value.cni_code == 11

    scripts.write()
    await scripts.lab.network.tear_down(pod(), scripts.netns)
    await scripts.lab.network.tear_down(pod(), scripts.netns)
    assert scripts.asked() == ["ADD", "DEL", "DEL"]
    assert '"prevResult"' in (scripts.lab.directory / "stdin.DEL").read_text()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo nonsense", "its answer is no JSON .*: nonsense"),
        ("true", "its answer is no JSON"),
        ("echo '[]'", "its answer is no JSON object"),
        ("""echo '{"ips": [{"address": "here"}]}'""", "it is no CNI result"),
        ("echo '{}'", 'failed to find network info for sandbox "one"'),
        ("yes", "it wrote more than 1048576 bytes and was killed"),
        ("yes >&2", "was not done after 1 s"),
        ("echo disk full >&2; exit 3", "exit status 3: disk full"),
        ("echo disk full; exit 3", "exit status 3: disk full"),
        ("kill -SEGV $$", "ended by signal SIGSEGV"),
        ("""echo '{"code": 7, "msg": "no such bridge"}'; exit 1""", r"no such bridge \(code 7\)"),
        ("""echo '{"code": "x", "msg": 5}'; exit 1""", "exit status 1"),
    ],
)
async def test_what_is_no_answer_is_named(scripts: Scripts, body: str, message: str) -> None:
    scripts.write(ADD=body)

    with pytest.raises(Exception, match=message):
        await scripts.set_up()

    assert scripts.asked() == ["ADD", "DEL"]
    assert not list(scripts.lab.records)


async def test_a_program_that_is_not_there_or_cannot_run_is_named(scripts: Scripts) -> None:
    program = scripts.lab.programs / "scripted"
    program.write_text("no program")
    with pytest.raises(PluginError, match="scripted cannot be executed: Exec format error"):
        await scripts.set_up()

    program.unlink()
    with pytest.raises(PluginError, match=f'failed to find plugin "scripted" in {scripts.lab.programs}, /'):
        await scripts.set_up()


async def test_an_answer_counts_when_the_program_ends_not_when_its_children_do(scripts: Scripts) -> None:
    """What a plugin has left behind on purpose holds its output open, and goes on."""
    scripts.write(ADD=f"setsid sleep 600 & echo $! > pids; echo '{_RESULT}'")

    await scripts.set_up()

    for pid in scripts.pids():
        assert Path(f"/proc/{pid}").exists()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_a_plugin_that_does_not_read_is_none_the_worse_for_it(scripts: Scripts) -> None:
    scripts.lab.configure({"type": "deaf", "padding": "x" * 500_000})
    program = scripts.lab.programs / "deaf"
    program.write_text(f"#!/bin/sh\n{_GOOD}")
    program.chmod(0o755)

    await scripts.set_up()

    addresses = await scripts.lab.network.addresses(pod())
    assert addresses is not None
    assert addresses.primary == "192.0.2.7"


async def test_status_and_check_tell_what_plugins_tell(scripts: Scripts) -> None:
    await scripts.set_up()
    assert await scripts.lab.network.status() is None
    await scripts.lab.network.check(pod())

    scripts.write(STATUS="""echo '{"code": 50, "msg": "no route reflector"}'; exit 1""", CHECK=_HANG)

    assert await scripts.lab.network.status() == 'plugin type="scripted" failed (status): no route reflector (code 50)'
    with pytest.raises(PluginError, match=r"failed \(check\): .* was not done after 1 s"):
        await scripts.lab.network.check(pod())


async def test_a_program_gets_what_the_specification_says_and_nothing_else(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "of the daemon")
    await scripts.set_up()

    lines = (scripts.lab.directory / "environment.ADD").read_text().splitlines()
    environment = dict(line.partition("=")[::2] for line in lines)
    assert environment["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-one;K8S_POD_INFRA_CONTAINER_ID=one"
        ";K8S_POD_UID=uid-one"
    )
    assert environment["CNI_NETNS"] == str(scripts.netns)
    assert (environment["CNI_CONTAINERID"], environment["CNI_IFNAME"]) == ("one", "eth0")
    assert "A_SECRET" not in environment


async def test_a_cancelled_attachment_goes_on_and_a_detachment_waits_for_it(scripts: Scripts) -> None:
    scripts.write(ADD=f"while [ ! -e go ]; do sleep 0.05; done; echo '{_RESULT}'")
    scripts.lab.seconds = 60
    scripts.lab.network = scripts.lab.started()
    netns = scripts.lab.namespaces.create()
    async with asyncio.TaskGroup() as group:
        attaching = group.create_task(scripts.lab.network.set_up(pod(), netns))
        async with asyncio.timeout(30):
            while "ADD" not in scripts.asked():
                await asyncio.sleep(0.05)
        attaching.cancel()
        detaching = group.create_task(scripts.lab.network.tear_down(pod(), netns))
        (scripts.lab.directory / "go").touch()
        await detaching

    assert scripts.asked() == ["ADD", "DEL"]
    assert not list(scripts.lab.records)


async def test_without_a_network_pods_are_told_what_is_wrong(scripts: Scripts) -> None:
    file = scripts.lab.configurations / "10-lab.conflist"
    good = file.read_text()
    file.unlink()
    nothing = f"cni config load failed: no network config found in {file.parent}: cni plugin not initialized"
    assert await scripts.lab.network.status() == nothing

    file.write_text(good[:-1])
    assert f"cni config load failed: {file}: " in str(await scripts.lab.network.status())
    with pytest.raises(NetworkNotReady, match="cni plugin not initialized"):
        await scripts.set_up()

    (file.parent / "20-other.conf").write_text('{"name": "other", "type": "scripted", "cniVersion": "1.0.0"}')
    assert await scripts.lab.network.status() is None
    await scripts.set_up()
    assert [one.network.name for one in scripts.lab.records] == ["other"]


async def test_records_that_a_power_cut_has_emptied_are_no_obstacle(scripts: Scripts) -> None:
    await scripts.set_up()
    record = next((scripts.lab.directory / "records").iterdir())
    record.write_bytes(b"")
    record.with_name("net-two-eth0.json.new").touch()

    await scripts.lab.network.tear_down(pod(), scripts.netns)
    await scripts.lab.network.collect([])

    assert not list(record.parent.iterdir())
    assert '"cni.dev/valid-attachments": []' in (scripts.lab.directory / "stdin.GC").read_text()
    assert "cni-" not in command("ls", scripts.lab.directory)
