"""A real critest on a private daemon, and the images that it pulls, from a local registry."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pytest

from . import peers
from .crictl import Daemon
from .registry_process import free_port

D = TypeVar("D", bound=Daemon)

# Specs that say nothing about a runtime with the images that there are, and why. docs/kubernetes.md has the same list.
SKIPPED = {
    "public image with digest": "names an image by the digest that it has in a public registry",
    "runtime should support MaskedPaths": "masks /bin/ls, which the shell of Debian's busybox has within itself",
}
# Why specs skip themselves.
KNOWN_REASONS = ("AppArmor is disabled on this host",)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the specs that were chosen: their names, and for skipped and failed ones the reason too."""

    passed: list[str]
    skipped: dict[str, str]
    failed: dict[str, str]

    def failures(self) -> str:
        """Return all that is known of the failed ones, as a text: pytest cuts everything else short."""
        return "\n\n".join(f"{name}\n{reason}" for name, reason in self.failed.items())


class Critest(Generic[D]):
    """critest, asking one daemon."""

    def __init__(self, daemon: D) -> None:
        """Ask `daemon`."""
        self._program = str(peers.find("critest"))
        self.daemon = daemon
        (daemon.base / "crictl.yaml").touch()  # the machine's own configuration is not the test's

    def run(self, *arguments: str, focus: Iterable[str] = (), seconds: float = 1200, processes: int = 1) -> Report:
        """Run the specs whose names match one of `focus`, or all of them; more `processes` than one need ginkgo."""
        report = self.daemon.base / "critest.json"
        report.unlink(missing_ok=True)
        endpoint = f"unix://{self.daemon.address}"
        command = [self._program, "-config", str(self.daemon.base / "crictl.yaml"), "-runtime-endpoint", endpoint]
        command += ["-image-endpoint", endpoint, f"--ginkgo.json-report={report}", "--ginkgo.no-color"]
        command += [f"--ginkgo.skip={pattern}" for pattern in ("benchmark", *SKIPPED)]
        command += [f"--ginkgo.focus={pattern}" for pattern in focus]
        path = os.environ["PATH"]
        if processes > 1:
            command.append(f"-parallel={processes}")
            path = f"{peers.find('ginkgo').parent}:{path}"
        done = subprocess.run(
            [*command, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds, check=False,
            cwd=self.daemon.base, env={**os.environ, "PATH": path, "TMPDIR": str(self.daemon.base)},
        )  # fmt: skip
        assert report.exists(), done.stdout[-8000:]
        return _read(json.loads(report.read_text()))

    def names(self) -> list[str]:
        """Return the names of all specs that `run` would run."""
        return self.run("--ginkgo.dry-run").passed


def exactly(name: str) -> str:
    """Return the pattern of the spec with that name, and of no other one."""
    return f"^{re.escape(name)}$"


def _read(suites: list[dict[str, object]]) -> Report:
    report = Report([], {}, {})
    for spec in (spec for suite in suites for spec in suite["SpecReports"] or ()):  # type: ignore[attr-defined]
        if spec["LeafNodeType"] != "It":
            continue
        name = " ".join([*spec["ContainerHierarchyTexts"], spec["LeafNodeText"]])
        message = spec.get("Failure", {}).get("Message", "")
        if spec["State"] == "passed":
            report.passed.append(name)
        elif spec["State"] == "skipped":
            if message:  # the others were not chosen
                report.skipped[name] = message
        else:
            report.failed[name] = f"{spec['State']}: {message}\n{spec.get('CapturedGinkgoWriterOutput', '')}"
    return report


@contextmanager
def critest_images(directory: Path) -> Iterator[str]:
    """Serve critest's images, and yield what a daemon's configuration says to have them pulled from there.

    Skips without the program that builds them from Debian packages, or a package of those.
    """
    serve = Path(os.environ.get("PYCTR_SHARED", ""), "critest", "serve-images")
    if not serve.exists():
        pytest.skip("no critest/serve-images in $PYCTR_SHARED")
    port = free_port()
    done = subprocess.run(
        [sys.executable, serve, directory / "images", "--port", str(port)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    process = int(done.stdout.split()[-1])
    hosts = directory / "hosts" / "_default"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n')
    try:
        yield f'[registry]\nconfig_path = ["{hosts.parent}"]\n'
    finally:
        os.kill(process, signal.SIGTERM)
