"""What must be known to find and remove a container when the process that made it is gone.

    <state directory>/state.json   written before the first cgroup or mount is made, then replaced
                                   by rename whenever more is known; so whatever exists is named here
                      attached/    where the root lies in a mount namespace that is not the container's own

It lies in the bundle for a shim, in <root>/<id> for the command.
"""

import json
import os
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.pidfd import start_ticks

NAME: Final = "state.json"
VERSION: Final = 1
OCI_VERSION: Final = "1.3.0"


class Status(Enum):
    """The states of the OCI runtime specification, and `paused`."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class State:
    """state.json's content. `pid` is 0 until the init process exists.

    `linux` is what later processes, and the removal, need of the spec's linux section:

        personality, memoryPolicy   as in the spec
        listener                    {"path", "metadata"} of the seccomp agent
        rdt                         resctrl groups to join
        rdtMade                     resctrl groups made for this container alone
        attached                    whether the mount namespace is another's, and the root's place in it `attached`
    """

    id: str
    bundle: str
    cgroup: str
    created_ns: int
    pid: int = 0
    start_ticks: int = 0
    namespaces: int = 0
    own_pid_namespace: bool = True
    host_mount: str = ""
    seccomp: str = ""
    seccomp_flags: int = 0
    user_namespace: bool = False
    annotations: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)
    linux: dict[str, Any] = field(default_factory=dict)
    rootfs: str = ""
    version: int = VERSION

    def with_pid(self, pid: int) -> "State":
        """Return the state once the init process is known."""
        return replace(self, pid=pid, start_ticks=start_ticks(pid))

    def is_alive(self) -> bool:
        """Whether the init process is there and has not ended; a reused pid is not taken for it."""
        if not self.pid:
            return False
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(words[19]) == self.start_ticks and words[0] not in {b"Z", b"X"}

    def document(self, status: Status, pid: int | None = None) -> bytes:
        """Return the OCI state document that hooks and callers of `state` read."""
        document = {
            "ociVersion": OCI_VERSION, "id": self.id, "status": status.value,
            "pid": self.pid if pid is None else pid, "bundle": self.bundle, "annotations": self.annotations,
        }  # fmt: skip
        if status is Status.STOPPED:
            document["pid"] = 0
        return json.dumps(document).encode()


_FIELDS: Final = tuple(item.name for item in fields(State))


def attached(directory: str) -> str:
    """Return where the root is attached if the mount namespace is not the container's own."""
    return os.path.join(directory, "attached")


def write(directory: str, state: State) -> None:
    """Write or replace the state."""
    temporary = os.path.join(directory, f".{NAME}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps({name: getattr(state, name) for name in _FIELDS}).encode())
    finally:
        os.close(fd)
    os.rename(temporary, os.path.join(directory, NAME))


def read(directory: str) -> State:
    """Return the state. Raises FileNotFoundError, and OciError if it is not one that this version wrote."""
    path = os.path.join(directory, NAME)
    with open(path, "rb") as file:
        document = json.load(file)
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise OciError(f"{path}: not a state of version {VERSION}")
    try:
        return State(**document)
    except TypeError as error:
        raise OciError(f"{path}: {error}") from None


def remove(directory: str) -> None:
    """Remove the state and what else the runtime keeps beside it; nothing happens if there is none."""
    for name in (NAME, f".{NAME}", "start.sock"):
        try:
            os.unlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue
