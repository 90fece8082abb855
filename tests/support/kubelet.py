"""A real kubelet without an API server, on a private daemon: it runs the pods whose manifests lie in a directory.

with Kubelet(daemon) as kubelet:
    kubelet.add(manifest)
    kubelet.container("web")["state"]["running"]
"""

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from . import peers
from .cri_client import IMAGE, CriClient
from .daemon_process import DEADLINE, DaemonProcess, wait_until
from .registry_process import free_port

NODE: Final = "node"
SECONDS: Final = max(150.0, DEADLINE)  # that a kubelet may take to notice something
_CGROUPS: Final = Path("/sys/fs/cgroup")
# What a kubelet sets for the whole machine.
_SETTINGS: Final = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
                    "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")  # fmt: skip
_SYSTEMD: Final = Path("/run/systemd/system").exists()
_LINKS: Final = Path("/var/log/containers")  # where it links logs, whatever its configuration says


class Kubelet:
    """One kubelet after the other on the same directories; leaves the machine as it was."""

    def __init__(
        self,
        daemon: DaemonProcess,
        features: Mapping[str, bool] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare its directories below the daemon's; `features` are its gates, `settings` the rest."""
        self._program = str(peers.find("kubelet"))
        self._daemon = daemon
        self.base = daemon.base / f"kubelet-{uuid.uuid4().hex[:8]}"
        self.manifests = self.base / "manifests"
        self.log = self.base / "log"
        self.cgroup = "" if _SYSTEMD else f"/pyctr-{self.base.name}"  # systemd has slices of one name only
        self.address = f"https://127.0.0.1:{free_port()}"
        self.context = ssl.create_default_context()
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.process: subprocess.Popen[bytes] | None = None
        self.manifests.mkdir(parents=True)
        self._config = self.base / "config.json"
        self._config.write_text(json.dumps(self._configuration(features or {}) | dict(settings or {})))

    def _configuration(self, features: Mapping[str, bool]) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": f"unix://{self._daemon.address}",
            "staticPodPath": str(self.manifests),
            "podLogsDir": str(self.base / "logs"),
            "volumePluginDir": str(self.base / "plugins"),
            "address": "127.0.0.1",
            "port": int(self.address.rpartition(":")[2]),
            "readOnlyPort": 0,
            "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs" if _SYSTEMD else "systemd",  # wrong: it believes the daemon, which it asks
            "cgroupRoot": self.cgroup,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "containerLogMaxSize": "256Ki",
            "containerLogMonitorInterval": "3s",
            "fileCheckFrequency": "1s",
            "syncFrequency": "2s",
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "crashLoopBackOff": {"maxContainerRestartPeriod": "5s"},
            "featureGates": {"KubeletCrashLoopBackOffMax": True, **features},
        }

    def start(self) -> None:
        """Start it; return when it answers."""
        command = [self._program, "--config", str(self._config), "--root-dir", str(self.base / "root")]
        command += ["--cert-dir", str(self.base / "certificates"), "--hostname-override", NODE, "--v", "2"]
        command += ["--containerd", str(self._daemon.address)]  # what its cAdvisor asks whose a cgroup is
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, f"the kubelet answers, but:\n{self.log_text()[-4000:]}", 2 * DEADLINE)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(DEADLINE)
        self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_text()[-8000:]
        try:
            return self.get("/healthz") == "ok"
        except OSError:
            return False

    def get(self, path: str) -> str:
        """Return what it answers. Raises OSError."""
        with urllib.request.urlopen(self.address + path, timeout=DEADLINE, context=self.context) as answer:
            return str(answer.read().decode())

    def add(self, manifest: dict[str, Any]) -> None:
        """Have it run a pod."""
        path = self.manifests / f"{manifest['metadata']['name']}.json"
        path.with_suffix(".new").write_text(json.dumps(manifest))
        path.with_suffix(".new").rename(path)

    def withdraw(self, name: str) -> None:
        """Have it remove a pod, if it has it."""
        (self.manifests / f"{name}.json").unlink(missing_ok=True)

    def status(self, name: str) -> dict[str, Any]:
        """Return a pod's status, an empty one while it knows nothing of it."""
        for pod in json.loads(self.get("/pods"))["items"] or ():
            if pod["metadata"]["name"] == f"{name}-{NODE}":
                return dict(pod["status"])
        return {}

    def container(self, name: str) -> dict[str, Any]:
        """Return the status of a pod's only container, an empty one while there is none."""
        statuses = self.status(name).get("containerStatuses") or [{}]
        return dict(statuses[0])

    def logs(self, name: str, options: str = "") -> str:
        """Return what a pod's container has written, "" while there is nothing to read."""
        try:
            return self.get(f"/containerLogs/default/{name}-{NODE}/main?{options}")
        except urllib.error.HTTPError:
            return ""

    def figure(self, name: str) -> float:
        """Return one of its own metrics, 0 if it has none of that name."""
        lines = self.get("/metrics").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def log_text(self) -> str:
        """Return what it wrote to standard error so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def pod_cgroups(self) -> list[str]:
        """Return the cgroups of its pods and what is in them."""
        roots = (Path(f"{hierarchy}{self.cgroup}") for hierarchy in _hierarchies())
        below = (path for root in roots for top in root.glob("kubepods*") for path in top.rglob("*pod*"))
        return [str(path) for path in below if path.is_dir() and re.search(r"\bpod[0-9a-f]", path.name)]

    def __enter__(self) -> Self:
        """Start it."""
        self._settings = {name: (Path("/proc/sys") / name).read_text() for name in _SETTINGS}
        self._had_links = _LINKS.exists()
        for hierarchy in _hierarchies() if self.cgroup else ():
            path = Path(f"{hierarchy}{self.cgroup}")
            path.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # one without any takes no process
                if (path / name).exists():
                    (path / name).write_text((hierarchy / name).read_text())
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, and put the machine's settings back."""
        if self.process is not None:
            self.stop()
        # It makes this a mount of its own, for what its pods mount there.
        subprocess.run(["umount", "--lazy", "--quiet", self.base / "root"], check=False)
        for name, value in self._settings.items():
            (Path("/proc/sys") / name).write_text(value)
        if _SYSTEMD:
            subprocess.run(["systemctl", "stop", "kubepods.slice"], check=False)
        if not self._had_links:
            shutil.rmtree(_LINKS, ignore_errors=True)
        for hierarchy in _hierarchies() if self.cgroup else ():
            for folder, _, _ in os.walk(f"{hierarchy}{self.cgroup}", topdown=False):
                if not error or not (Path(folder) / "cgroup.procs").read_text():
                    Path(folder).rmdir()


class Pod:
    """A pod of one container, as its kubelet and the daemon see it."""

    def __init__(self, kubelet: Kubelet, cri: CriClient, script: str, **container: Any) -> None:
        self.name = f"pod-{uuid.uuid4().hex[:8]}"
        self._kubelet = kubelet
        self._cri = cri
        spec = container.pop("pod", {})
        main = {
            "name": "main",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            **container,
        }
        kubelet.add(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": self.name, "namespace": "default"},
                "spec": {
                    "containers": [main],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                    "terminationGracePeriodSeconds": 1,
                    **spec,
                },
            }
        )

    @property
    def status(self) -> dict[str, Any]:
        return self._kubelet.container(self.name)

    @property
    def id(self) -> str:
        return str(self.status["containerID"].removeprefix("containerd://"))

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> dict[str, Any]:
        """Wait until the status of the container is so, and return it."""
        wait_until(lambda: bool(condition(self.status)), what, SECONDS)
        return self.status

    def started(self) -> "Pod":
        """Wait until it is ready."""
        self.until(lambda status: status.get("ready"), f"{self.name} is ready")
        return self

    def logs(self, options: str = "") -> str:
        return self._kubelet.logs(self.name, options)

    def exec(self, *command: str) -> bytes:
        """Run a command in the container and return its output."""
        return bytes(self._cri.exec(self.id, *command).stdout)

    def sandboxes(self) -> list[str]:
        return [one.id for one in self._cri.pods() if one.metadata.name == f"{self.name}-{NODE}"]

    def url(self, verb: str, path: str = "", **query: object) -> str:
        """Where the kubelet runs a command or forwards a port."""
        encoded = urllib.parse.urlencode(query, doseq=True)
        return f"{self._kubelet.address}/{verb}/default/{self.name}-{NODE}{path}?{encoded}"


def _hierarchies() -> list[Path]:
    """Return where cgroups are mounted: one place, or one for each controller."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
