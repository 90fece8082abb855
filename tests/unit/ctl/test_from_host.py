"""Images from this machine's programs."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import IO, Any

import pytest

from pyctr import elf, from_host
from pyctr.errors import CommandError


def read(archive: IO[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=archive) as tar:
        opened = ((member.name, tar.extractfile(member)) for member in tar)
        return {name: file.read() for name, file in opened if file is not None}


def layer_of(files: dict[str, bytes]) -> tuple[tarfile.TarFile, dict[str, Any]]:
    blob = {f"sha256:{name.rpartition('/')[2]}": data for name, data in files.items()}
    index = json.loads(files["index.json"])
    manifest = json.loads(blob[index["manifests"][0]["digest"]])
    config = json.loads(blob[manifest["config"]["digest"]])
    return tarfile.open(fileobj=io.BytesIO(blob[manifest["layers"][0]["digest"]])), {"index": index, "config": config}


def test_an_image_of_a_shell_holds_what_it_loads() -> None:
    with from_host.build("docker.io/library/demo:latest", ["sh", "cat"]) as archive:
        files = read(archive)
    tar, documents = layer_of(files)
    with tar:
        names = {f"/{name}" for name in tar.getnames()}
        assert os.path.realpath("/bin/sh") in names
        assert {"/etc/passwd", "/etc/group", "/tmp", "/proc", "/dev"} <= names
        for library in elf.libraries(Path("/bin/cat").resolve(), elf.interpreter(Path("/bin/cat").resolve()) or ""):
            assert os.path.realpath(library) in names
        assert len(tar.getnames()) == len(set(tar.getnames()))
        assert tar.getmember("tmp").mode == 0o1777
    assert documents["config"]["config"]["Cmd"] == [from_host.find_program("sh")]
    annotations = documents["index"]["manifests"][0]["annotations"]
    assert annotations == {"io.containerd.image.name": "docker.io/library/demo:latest"}


@pytest.mark.parametrize(
    ("table", "count", "rest"),
    [
        ((1 << 64) - 1, 1, b""),
        (64, 1, b""),
        (64, 1, struct.pack("<IIQQQQQQ", 3, 0, 120, 0, 0, 4, 0, 0) + b"/\xff\xfe\0"),
        (64, 1, struct.pack("<IIQQQQQQ", 3, 0, 120, 0, 0, 4, 0, 0) + b"/a\0b"),
        (64, 1, struct.pack("<IIQQQQQQ", 3, 0, (1 << 64) - 1, 0, 0, 4, 0, 0)),
    ],
)
def test_a_damaged_program_is_named(tmp_path: Path, table: int, count: int, rest: bytes) -> None:
    head = struct.pack("<4sBB10xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 2, 62, 1, 0, table, 0, 0, 64, 56, count, 0, 0, 0)
    program = tmp_path / "program"
    program.write_bytes(head + rest)

    with pytest.raises(CommandError, match=f"{program} is a damaged ELF program"):
        elf.interpreter(program)


def test_what_a_program_names_as_its_linker_is_not_run(tmp_path: Path) -> None:
    linker = tmp_path / "linker"
    linker.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    linker.chmod(0o755)
    name = bytes(linker) + b"\0"
    program = tmp_path / "program"
    program.write_bytes(
        struct.pack("<4sBB10xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        + struct.pack("<IIQQQQQQ", 3, 0, 120, 0, 0, len(name), 0, 0)
        + name
    )
    program.chmod(0o755)

    with pytest.raises(CommandError, match="none of this machine's dynamic linkers"):
        from_host.build("x/y:z", [str(program)])

    assert not (tmp_path / "ran").exists()


def test_the_same_files_give_the_same_image() -> None:
    def build() -> bytes:
        with from_host.build("x/y:z", ["true"]) as archive:
            return archive.read()

    assert build() == build()


def test_symlinks_are_kept_and_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    program = tmp_path / "real" / "program"
    program.write_bytes(Path("/bin/true").resolve().read_bytes())
    program.chmod(0o755)
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "real" / "name").symlink_to(f"{tmp_path}/folder/program")
    files = from_host.Files()
    assert files.add(f"{tmp_path}/folder/name") == program
    assert files.links[f"{tmp_path}/folder"] == "real"
    assert files.links[f"{tmp_path}/real/name"] == f"{tmp_path}/folder/program"
    assert list(files.sources) == [str(program)]
    assert not [path for path in (*files.sources, *files.links) if "//" in path]


@pytest.mark.skipif(not Path("/bin").is_symlink(), reason="/bin is a directory of this machine")
def test_programs_have_their_short_names() -> None:
    """However they were named: what is in the image says #!/bin/sh."""
    with from_host.build("x/y:z", [str(Path("/bin/true").resolve())]) as archive:
        tar, _ = layer_of(read(archive))
    with tar:
        assert tar.getmember("bin").linkname == str(Path("/bin").readlink())
        assert "sbin" not in tar.getnames()


def test_a_scripts_interpreter_comes_along(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\necho\n")
    script.chmod(0o755)
    files = from_host.Files()
    files.add_program(str(script))
    assert os.path.realpath("/bin/sh") in files.sources
    assert str(script) in files.sources


@pytest.mark.parametrize("content", [b"", b"text", b"#!\n", b"\x7fELF"])
def test_what_is_not_a_program_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(CommandError):
        elf.interpreter(file)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-program"):
        from_host.build("x/y:z", ["no-such-program"])


def test_the_interpreter_is_what_the_kernel_uses() -> None:
    program = Path(sys.executable).resolve()
    found = elf.interpreter(program)
    assert found is None or subprocess.run([found, str(program), "-c", ""], check=False).returncode == 0
