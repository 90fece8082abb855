"""What a container of another runtime consists of, known also when the shim that made it is gone.

    <bundle>/runtime.json   written before the runtime is first called, and again when the first process is known
    <bundle>/runtime/       the runtime's own state, unless the options name another place

It is removed by the runtime's `delete`, and by ourselves where that hangs, fails or has been uninstalled.
"""

import json
import os
from contextlib import suppress
from typing import Final, NamedTuple

from pyctr_shim import journal
from pyctr_shim.external import cgroup, command
from pyctr_shim.identity import write_file
from pyctr_shim.loop import Loop
from pyctr_shim.oci import runtime
from pyctr_shim.oci.errors import OciError

NAME: Final = "runtime.json"
VERSION: Final = 1
_BURIAL: Final = 3.5  # seconds for the runtime's part of a burial, for all of which containerd has five


class Record(NamedTuple):
    """runtime.json's content: whose container it is, and what has been made for it.

    `rootfs` is a directory that the shim mounted. `cgroup` is where its processes are, as cgroup.py writes it;
    `asked_cgroup` where they shall be, in which somebody else's may be just as well. `pid` is 0 until there is a first
    process. A command may take `seconds`.
    """

    id: str
    program: str
    root: str
    seconds: float
    systemd_cgroup: bool
    rootfs: str
    asked_cgroup: str
    cgroup: str = ""
    pid: int = 0
    version: int = VERSION

    @property
    def name(self) -> str:
        """Return what people call the runtime."""
        return self.program.rpartition("/")[2]

    def arguments(self, log: str) -> list[str]:
        """Return the global options of every command."""
        systemd = ["--systemd-cgroup"] if self.systemd_cgroup else []
        return ["--root", self.root, "--log", log, "--log-format", "json", *systemd]


def write(bundle: str, record: Record) -> None:
    """Write or replace the record."""
    write_file(f"{bundle}/{NAME}", json.dumps(record._asdict()).encode())


def read(bundle: str) -> Record | None:
    """Return the record, None if another runtime has nothing here. Raises OciError for one of another version."""
    path = f"{bundle}/{NAME}"
    try:
        with open(path, "rb") as file:
            document = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OciError(f"{path}: {error}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise OciError(f"{path}: not a record of version {VERSION}")
    try:
        return Record(**document)
    except TypeError as error:
        raise OciError(f"{path}: {error}") from None


def forget(bundle: str) -> None:
    """Remove the record: there is nothing left that it could name."""
    with suppress(FileNotFoundError):
        os.unlink(f"{bundle}/{NAME}")


def remove(record: Record) -> None:
    """Remove what the runtime's `delete` has left: cgroup, root, state. Raises OciError while processes are there."""
    try:
        cgroup.remove(record.cgroup)
    except OSError as error:
        raise OciError(f"cgroup {record.cgroup} cannot be removed: {error.strerror}", error.errno or 0) from None
    with suppress(OSError):  # in use, so by somebody else
        cgroup.remove(record.asked_cgroup)
    if record.rootfs:
        runtime.unmount_all(record.rootfs)
    if os.path.lexists(f"{record.root}/{record.id}"):
        import shutil  # for runtimes that do not even delete

        shutil.rmtree(f"{record.root}/{record.id}", ignore_errors=True)


def bury(bundle: str, record: Record) -> int:
    """End and remove the container of a shim that is gone; return its first process, or 0.

    For a process of its own, as it waits for the runtime. Raises OciError while processes of it are there.
    """
    loop = Loop()
    log = f"{bundle}/.log-delete"
    try:
        child = command.start(loop, record.program, [*record.arguments(log), "delete", "--force", record.id], _BURIAL)
        while not child.ended.done:
            loop.run_once()
        result = child.ended.result()
        if result.code != 0:
            text = command.explain(record.name, "delete", result, _BURIAL, command.last_error(log))
            journal.log("runtime does not delete", runtime=record.program, error=text)
    except OciError as error:
        journal.log("runtime does not delete", runtime=record.program, error=str(error))
    finally:
        loop.close()
        with suppress(FileNotFoundError):
            os.unlink(log)
    place = cgroup.cgroup_of(record.cgroup)
    place.kill()
    if place.is_paused():
        place.resume()
    return record.pid
