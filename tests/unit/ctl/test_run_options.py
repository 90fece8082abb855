"""The words of `run`: sizes, mounts, environment."""

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyctr import run_options, run_session, tasks
from pyctr.commands import lifecycle, start
from pyctr.commands import run as run_command
from pyctr.connection import Connection, NoDaemon
from pyctr.session import Session
from pyctr_wire.pyctr.engine_pb2 import RunOptions, RunSpecResponse


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("512m", 512 << 20),
        ("1G", 1 << 30),
        ("1.5g", 3 << 29),
        ("2kib", 2048),
        ("10MB", 10 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert run_options.parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1 2", "99999999999g"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="--memory"):
        run_options.parse_size("--memory", text)


def test_volumes() -> None:
    mount = run_options.parse_volume("/data:/mnt:ro,rslave")
    assert (mount.type, mount.source, mount.target) == ("bind", "/data", "/mnt")
    assert list(mount.options) == ["rbind", "rslave", "ro"]
    mount = run_options.parse_volume("/data")
    assert (mount.type, mount.source, mount.target) == ("volume", "", "/data")
    mount = run_options.parse_volume("data:/mnt:ro,nocopy")
    assert (mount.type, mount.source, mount.target) == ("volume", "data", "/mnt")
    assert list(mount.options) == ["rprivate", "ro", "nocopy"]


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("/data:/mnt:z", "/data:/mnt"),
        ("/data:/mnt:ro,Z", "/data:/mnt:ro"),
        ("data:/mnt:Z,nocopy", "data:/mnt:nocopy"),
        ("data:/mnt:z", "data:/mnt"),
    ],
)
def test_volumes_that_are_to_be_labelled(text: str, alike: str) -> None:
    """There is nothing to do: nothing keeps these containers from files by their labels."""
    assert run_options.parse_volume(text) == run_options.parse_volume(alike)


@pytest.mark.parametrize(
    "text",
    ["only", "", "name:mnt", "name:/m:rslave", "/a:/b:nocopy", "/a:relative", "/a:/b:what", "/a:/b:ro:more", ":/b"],
)
def test_volumes_that_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        run_options.parse_volume(text)


def test_mounts(tmp_path: Path) -> None:
    mount = run_options.parse_mount(f"type=bind,src={tmp_path},dst=/a,readonly,bind-propagation=rshared")
    assert list(mount.options) == ["rbind", "rshared", "ro"]
    mount = run_options.parse_mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770")
    assert list(mount.options) == ["nosuid", "nodev", "noexec", "size=1048576", "mode=1770"]
    mount = run_options.parse_mount("type=volume,dst=/v,ro")
    assert (mount.type, mount.source, list(mount.options)) == ("volume", "", ["rprivate", "ro"])
    assert run_options.parse_mount("target=/v").type == "volume"
    mount = run_options.parse_mount("source=data,target=/v,volume-nocopy")
    assert (mount.type, mount.source, list(mount.options)) == ("volume", "data", ["rprivate", "rw", "nocopy"])


@pytest.mark.parametrize(
    "text",
    [
        "type=volume,source=/a,target=/b", "source=./a,target=/b", "type=bind,source=/,target=b", "type=tmpfs",
        "type=bind,source=/no/such/path,target=/b", "type=tmpfs,source=/,target=/b", "type=bind,source=/,target=/b,x=y",
    ],
)  # fmt: skip
def test_mounts_that_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        run_options.parse_mount(text)


@pytest.mark.parametrize(("word", "access"), [("1", "ro"), ("t", "ro"), ("TRUE", "ro"), ("0", "rw"), ("False", "rw")])
def test_truth_in_a_mount_has_the_words_of_dockers(word: str, access: str) -> None:
    assert access in run_options.parse_mount(f"target=/v,readonly={word}").options
    assert ("nocopy" in run_options.parse_mount(f"target=/v,volume-nocopy={word}").options) == (access == "ro")


@pytest.mark.parametrize("word", ["yes", "on", "tRUE", ""])
@pytest.mark.parametrize("field", ["ro", "readonly", "volume-nocopy"])
def test_what_is_neither_true_nor_false_is_refused(field: str, word: str) -> None:
    """Who asks for a mount that cannot be written must not get one that can."""
    with pytest.raises(click.BadParameter, match=f"{'readonly' if field == 'ro' else field} is true or false"):
        run_options.parse_mount(f"target=/v,{field}={word}")


def test_tmpfs_options_replace_their_opposites() -> None:
    assert list(run_options.parse_tmpfs("/t:exec,size=1m").options) == ["nosuid", "nodev", "exec", "size=1m"]


def test_environment(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n# comment\n\n  B \nNOTHERE\n")
    entries = run_options.environment(["C=x=y", "D", "B"], [str(file)], {"B": "from us", "SECRET": "s"})
    assert entries == ["A=1", "B=from us", "C=x=y", "B=from us"]


def test_values_of_an_environment_file_stay_as_they_are(tmp_path: Path) -> None:
    """Docker takes blanks in front of a name away, and nothing else; a line ends where an editor ends it."""
    file = tmp_path / "env"
    file.write_bytes("  A= x \r\nB=1\f2\u20283\n".encode())
    assert run_options.environment([], [str(file)], {}) == ["A= x ", "B=1\f2\u20283"]


@pytest.mark.parametrize("line", ["A B=1", "=1", "A B"])
def test_a_name_in_an_environment_file_has_no_blanks(tmp_path: Path, line: str) -> None:
    file = tmp_path / "env"
    file.write_text(f"GOOD=1\n{line}\n")
    with pytest.raises(click.BadParameter, match=f"{file}: '{line}'"):
        run_options.environment([], [str(file)], {})


@pytest.mark.parametrize(
    "option", ["--network=bridge", "--shm-size=1m", "--dns=1.1.1.1", "--gpus=all", "--pull=always"]
)
def test_options_of_dockers_that_are_not_here_are_explained(option: str) -> None:
    result = CliRunner().invoke(run_command.run, [option, "image"], obj=Session())
    assert result.exit_code == 2
    assert "such option" not in result.output
    assert option.partition("=")[0] in result.output


@pytest.mark.parametrize("entry", ["=x", "", "A=\0"])
def test_environment_entries_that_are_refused(entry: str) -> None:
    with pytest.raises(click.BadParameter):
        run_options.environment([entry], [], {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """What `create` would send to the daemon."""
    found: list[RunOptions] = []

    def make(session: Session, image: str, command: tuple[str, ...], given: dict[str, object]) -> object:
        found.append(run_options.to_options(command, given, {"HOME": "/h"}))
        return type("Made", (), {"id": image})

    monkeypatch.setattr(run_command, "make", make)
    return found


def test_a_whole_command_line(asked: list[RunOptions]) -> None:
    arguments = [
        "-it", "-e", "A=1", "-h", "box", "-m", "64m", "--cpus", "1.5", "--pids-limit", "-1", "--cap-add", "NET_ADMIN",
        "--entrypoint", "", "-l", "x=y", "-l", "bare", "--network", "host", "--rm", "-u", "1:2", "image", "-e", "--rm",
    ]  # fmt: skip
    result = CliRunner().invoke(run_command.create, arguments, obj=Session(), catch_exceptions=False)
    assert result.output == "image\n"
    options = asked[0]
    assert list(options.args) == ["-e", "--rm"]
    assert options.terminal
    assert options.interactive
    assert list(options.entrypoint) == [""]
    assert (options.memory, options.nano_cpus, options.pids_limit) == (64 << 20, 1_500_000_000, 0)
    assert dict(options.labels) == {"x": "y", "bare": ""}
    assert (options.hostname, options.network, options.user) == ("box", "host", "1:2")
    assert options.auto_remove


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ("--rm=true", True), ("--rm=1", True), ("--rm=false", False), ("--rm --rm=false", False),
        ("--rm=F --rm", True), ("-i --rm=T", True), ("-e --rm=true", False), ("-ite --rm=true", False),
        ("--env --rm=true", False), ("-eA --rm=true", True), ("--env=A --rm=true", True), ("-- --rm=true", False),
    ],
)  # fmt: skip
def test_flags_are_spelled_as_dockers_users_do(asked: list[RunOptions], words: str, on: bool) -> None:
    """What is another option's value, or of the container's command, is left alone."""
    arguments = [*words.split(), "image", "--rm=true"]
    CliRunner().invoke(run_command.create, arguments, obj=Session(), catch_exceptions=False)
    assert asked[0].auto_remove == on
    assert asked[0].args[-1] == "--rm=true"


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        (lifecycle.rm, "c1 --force=true", "force", True),
        (lifecycle.rm, "--force c1 --force=false", "force", False),
        (start.attach, "c1 --sig-proxy=false", "sig_proxy", False),
        (start.attach, "--sig-proxy=false c1 --sig-proxy", "sig_proxy", True),
    ],
)
def test_flags_are_spelled_so_behind_arguments_too(command: click.Command, words: str, name: str, value: bool) -> None:
    context = command.make_context(None, words.split())
    assert context.params[name] is value


def test_seccomp_profiles_are_read_here(asked: list[RunOptions], tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    arguments = ["--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges", "image"]
    CliRunner().invoke(run_command.create, arguments, obj=Session(), catch_exceptions=False)
    assert list(asked[0].security_options) == ['seccomp={"defaultAction": "SCMP_ACT_ALLOW"}', "no-new-privileges"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "5m"), "the least is 6m"),
        (("--cpus", "nan"), "--cpus nan"),
        (("--cpus", "inf"), "--cpus inf"),
        (("--cpus", "0.001"), "0.01"),
        (("--cpus", "-1"), "0.01"),
        (("--pids-limit", "99999999999999999999"), "--pids-limit"),
        (("--sysctl", "kernel.msgmax"), "NAME=VALUE"),
        (("--log-opt", "max-size"), "NAME=VALUE"),
        (("--env-file", "/nonexistent"), "/nonexistent: No such file or directory"),
        (("--env-file", sys.executable), "not a text file"),
        (("--security-opt", "seccomp=/nonexistent"), "--security-opt seccomp=/nonexistent: No such file or directory"),
    ],
)
def test_what_is_refused(asked: list[RunOptions], arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(run_command.create, [*arguments, "image"], obj=Session())
    assert result.exit_code == 2
    assert message in result.output
    assert not asked


def test_nothing_is_no_limit(asked: list[RunOptions]) -> None:
    arguments = ["-m", "0", "--cpus", "0", "--pids-limit", "0", "image"]
    CliRunner().invoke(run_command.create, arguments, obj=Session(), catch_exceptions=False)
    assert (asked[0].memory, asked[0].nano_cpus, asked[0].pids_limit) == (0, 0, 0)


def test_the_exit_code_is_the_containers_though_the_daemon_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shim has told it; the daemon that comes removes what was to be removed."""
    made = RunSpecResponse(id="c1", log_uri="attach:")
    attached = type("Attached", (), {"close": lambda self: None})()

    def away(*_: object) -> None:
        raise NoDaemon("nobody there")

    monkeypatch.setattr(run_command, "make", lambda *_: made)
    monkeypatch.setattr(Session, "connection", Connection("/none", "default"))
    monkeypatch.setattr(tasks, "create", lambda *_, **__: None)
    monkeypatch.setattr(tasks, "start", lambda *_: 1)
    monkeypatch.setattr(run_session, "attach", lambda *_, **__: attached)
    monkeypatch.setattr(run_session, "follow", lambda *_, **__: 7)
    monkeypatch.setattr(tasks, "delete", away)
    result = CliRunner().invoke(run_command.run, ["--rm", "image"], obj=Session(), standalone_mode=False)
    assert result.return_value == 7, result
    assert "c1 is not removed yet: nobody there" in result.stderr
