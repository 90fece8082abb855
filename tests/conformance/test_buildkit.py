"""A real buildkitd with its containerd worker: what is built runs, what is cached is found, what is pruned is gone."""

import hashlib
import json
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.buildkit import Buildkit, write_context
from support.daemon_process import wait_until
from support.footprint import Footprint
from support.nerdctl import NAME, Nerdctl
from support.registry_process import running_registry

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.timeout(300)]

STAGES = """\
FROM {base} AS first
ENV A=b
RUN echo $A >/made && id -u >>/made
RUN --mount=type=cache,target=/cache echo x >>/cache/n && wc -l </cache/n >/count
FROM {base}
COPY --from=first /made /count /x/
COPY sent /x/
RUN --mount=type=bind,from=first,target=/first cat /first/made && echo th''ere
RUN --mount=type=secret,id=word tr a-z A-Z </run/secrets/word >/x/secret && rm /etc/hello
WORKDIR /x
USER 1000
CMD ["sh", "-c", "cat made count sent secret; id -u; ls /etc/hello /run/secrets"]
"""
PRINTS = "b\n0\n1\nsent\nWORD\n1000\n"


@dataclass(frozen=True)
class Works:
    """A builder and where it gets images from."""

    build: Buildkit
    base: str
    registry: str


@pytest.fixture(scope="module")
def works(loaded: Nerdctl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Works]:
    """buildkitd; when it has pruned all, nothing may be left of what was built."""
    before = Footprint(loaded.daemon)
    with running_registry(tmp_path_factory.mktemp("registry")) as registry, Buildkit(loaded, registry) as build:
        base = f"{registry}/base:v1"
        loaded("tag", NAME, base)
        loaded("push", "--quiet", base)
        loaded("rmi", base)
        yield Works(build, base, registry)
    before.assert_unchanged()


def stages(folder: Path, base: str) -> tuple[Path, str]:
    """Return a context, and the option that gives it its secret."""
    (folder / "secret").write_text("word\n")
    context = write_context(folder / "context", STAGES.format(base=base), {"sent": "sent\n"})
    return context, f"--secret=id=word,src={folder}/secret"


def test_a_build_in_stages(works: Works, tmp_path: Path) -> None:
    """Exported as an image of this daemon, which runs; built again, all is cached, also after the daemon was killed."""
    context, secret = stages(tmp_path, works.base)
    output = ("--output", "type=image,name=example.com/built:v1,unpack=true")
    works.build.prune()  # other tests build the same

    told = works.build.build(context, secret, *output)

    assert "there" in told
    assert "CACHED" not in told
    done = works.build.nerdctl.run(
        "--namespace", "buildkit", "run", "--rm", "--network", "none", "example.com/built:v1"
    )
    assert done.stdout == PRINTS, done.stderr
    assert done.stderr.count("No such file") == 2, done.stderr

    works.build.nerdctl.daemon.restart()
    told = works.build.build_again(context, secret, *output)
    assert told.count("CACHED") == 7, told
    assert "there" not in told
    (context / "sent").write_text("other\n")
    told = works.build.build(context, secret, *output)
    assert told.count("CACHED") == 3, told
    run = ("run", "--rm", "--network", "none", "example.com/built:v1")
    assert works.build.in_namespace(*run, "cat", "count", "sent") == "1\nother\n"
    works.build.in_namespace("rmi", "example.com/built:v1")


def test_nerdctl_builds_with_it(works: Works, tmp_path: Path) -> None:
    """nerdctl loads what buildkitd has exported into a namespace of its own."""
    context, secret = stages(tmp_path, works.base)

    done = works.build.by_nerdctl("build", "--progress", "plain", secret, "--tag", "example.com/made:v1", str(context))

    assert done.returncode == 0, done.stderr
    nerdctl = works.build.nerdctl
    assert nerdctl.run("run", "--rm", "--network", "none", "example.com/made:v1").stdout == PRINTS
    nerdctl("rmi", "example.com/made:v1")
    done = works.build.by_nerdctl("builder", "prune", "--all", "--force")
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_an_image_as_an_archive(works: Works, tmp_path: Path, compression: str) -> None:
    """In OCI's format: blobs are what they are named for, layers of the asked compression, and nerdctl can load it."""
    context, secret = stages(tmp_path, works.base)
    archive = tmp_path / "image.tar"
    form = f"compression={compression},force-compression=true"

    works.build.build(context, secret, "--output", f"type=oci,dest={archive},name=example.com/packed:v1,{form}")

    with tarfile.open(archive) as file:
        blobs = {
            member.name.rpartition("/")[2]: opened.read()
            for member in file
            if member.name.startswith("blobs/sha256/") and (opened := file.extractfile(member)) is not None
        }
        index = json.loads(file.extractfile("index.json").read())  # type: ignore[union-attr]
    assert [name for name, blob in blobs.items() if hashlib.sha256(blob).hexdigest() != name] == []
    manifest = json.loads(blobs[index["manifests"][0]["digest"].removeprefix("sha256:")])
    suffix = "" if compression == "uncompressed" else f"+{compression}"
    kinds = {layer["mediaType"] for layer in manifest["layers"]}
    assert kinds == {f"application/vnd.oci.image.layer.v1.tar{suffix}"}
    nerdctl = works.build.nerdctl
    nerdctl("load", "--input", str(archive))
    assert nerdctl.run("run", "--rm", "--network", "none", "example.com/packed:v1").stdout == PRINTS
    nerdctl("rmi", "example.com/packed:v1")


@pytest.mark.full
def test_a_cache_in_a_registry(works: Works, tmp_path: Path) -> None:
    """What was pushed with its cache is built from it when nothing of it is here any more."""
    context, secret = stages(tmp_path, works.base)
    name, cache = f"{works.registry}/cached:v1", f"type=registry,ref={works.registry}/cache:v1"

    works.build.build(
        context, secret, "--output", f"type=image,name={name},push=true", "--export-cache", f"{cache},mode=max"
    )
    works.build.in_namespace("rmi", name)
    works.build.prune()
    told = works.build.build(context, secret, "--output", f"type=image,name={name}", "--import-cache", cache)

    assert "there" not in told
    works.build.in_namespace("rmi", name)
    nerdctl = works.build.nerdctl
    assert nerdctl.run("run", "--rm", "--network", "none", name).stdout == PRINTS
    nerdctl("rmi", name)


@pytest.mark.full
def test_steps_that_fail(works: Works, tmp_path: Path) -> None:
    context = write_context(tmp_path / "context", f"FROM {works.base}\nRUN echo said; exit 3\n", {})
    done = works.build.run(*works.build.words(context))
    assert done.returncode != 0
    assert "said" in done.stderr
    assert "exit code: 3" in done.stderr
    (context / "Dockerfile").write_text(f'FROM {works.base}\nRUN ["nowhere"]\n')
    assert "executable file not found in $PATH" in works.build.run(*works.build.words(context)).stderr
    (context / "Dockerfile").write_text(f"FROM {works.base}x\n")
    assert "not found" in works.build.run(*works.build.words(context)).stderr


@pytest.mark.full
@pytest.mark.parametrize("killed", ["buildctl", "buildkitd", "pyctrd"])
def test_a_build_is_cut_off(works: Works, tmp_path: Path, killed: str) -> None:
    """Whoever is killed while a step runs, the next build finds what was done before it and does the rest."""
    step = '[ "$(cat /run/secrets/go)" = yes ] || { echo wait""ing; until [ -e /go ]; do sleep 0.1; done; }'
    lines = [f"FROM {works.base}", f"RUN echo {killed} >/done", f"RUN --mount=type=secret,id=go {step}"]
    context = write_context(tmp_path / "context", "\n".join(lines), {})
    (tmp_path / "go").write_text("no")
    secret = f"--secret=id=go,src={tmp_path}/go"
    with works.build.building(context, secret) as building:
        assert building.stderr is not None
        assert any(line.rstrip().endswith(" waiting") for line in building.stderr), works.build.log()
        [id] = works.build.in_namespace("ps", "--quiet", "--no-trunc").split()
        match killed:
            case "buildctl":
                building.terminate()
            case "buildkitd":
                works.build.stop(signal.SIGKILL)
                works.build.start()
            case _:
                works.build.nerdctl.daemon.restart()
                # What buildkitd cannot remove while it has not found the daemon, it leaves.
                other = write_context(tmp_path / "other", f"FROM {works.base}\nRUN true", {})
                works.build.build_again(other, "--no-cache")
                # It does not know how the step ends, but waits for all of its output.
                works.build.in_namespace("exec", id, "touch", "/go")
        building.stderr.read()
        assert building.wait(60) != 0
    if killed == "buildkitd":  # which forgets what it was at
        works.build.ctr("tasks", "rm", "--force", id)
        works.build.ctr("containers", "rm", id)
    wait_until(lambda: works.build.in_namespace("ps", "--all", "--quiet") == "", "its container goes")

    (tmp_path / "go").write_text("yes")
    told = works.build.build_again(context, secret)

    assert told.count("CACHED") == 1, told
    assert " waiting\n" not in told
