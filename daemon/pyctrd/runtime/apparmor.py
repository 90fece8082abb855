"""AppArmor: the profile that confines containers which ask for no other, and how the kernel comes to know it.

It has two names. `pyctr run` gives its containers the one here; pods' containers have the one that nodes expect, see
pyctrd.cri.confinement. A profile is compiled into the kernel when a container that names it is made, the first in a
daemon's life, so that this version's text is in force, or the first since somebody removed it or the machine booted.
Source: apparmor.d(5), apparmor_parser(8); what docker's default profile denies.
"""

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from string import Template
from typing import Final

from pyctr_sys.namespaces import in_user_namespace
from pyctr_wire.errors import FailedPrecondition, Internal
from pyctrd.log import Logger
from pyctrd.offload import Offload

DEFAULT: Final = "pyctr-default"
POD_DEFAULT: Final = "cri-containerd.apparmor.d"

_PARSER: Final = "apparmor_parser"
_PARSER_FOLDERS: Final = "/usr/sbin:/sbin"  # which the PATH of a daemon may lack
_TIMEOUT: Final = 60.0  # seconds
_MAX_ERROR_TEXT: Final = 2000  # characters of what the parser says
_OWN_LABELS: Final = ("attr/apparmor/current", "attr/current")  # the second one is of kernels before 5.8
_PLAIN_LABEL: Final = re.compile(r"[\w./+-]+")  # nothing in it that would be a pattern

_log = Logger("pyctrd.runtime")

# In a rule [^k] is any character but k, * stops at a slash and ** does not. What is denied no other rule allows.
_TEXT: Final = Template("""\
profile "$name" flags=(attach_disconnected, mediate_deleted) {
  # Capabilities, namespaces and the system call filter say what a container may do. What follows
  # holds whichever of these it was given.
  capability,
  file,
  network,
  umount,

  # What is mounted, bound, moved or remounted could show what is hidden below.
  deny mount,

  # Processes under this profile see to each other; from outside come the signals of whoever supervises them.
  ptrace (read, readby, trace, tracedby) peer="$name",
  signal (send, receive) peer="$name",
$senders

  # Memory and the keyboard's commands are the machine's.
  deny /proc/{kcore,sysrq-trigger} rwklx,

  # In /proc, a process's directory may be written to, but no file beside these, in no other directory.
  deny /proc/* w,
  deny /proc/{[^1-9s],s[^y],sy[^s],sys[^/]}*/** w,

  # Of all kernel parameters, the IPC namespace's for shared memory.
  deny /proc/sys/{[^k],k[^e],ke[^r]}** w,
  deny /proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,

  # Of /sys, the cgroups may be written to; firmware, security modules and energy counters are not even shown.
  deny /sys/{[^f],f[^s]}*/** wklx,
  deny /sys/fs/{[^c],c[^g],cg[^r]}*/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
""")


def profile_text(name: str, supervisor: str = "") -> str:
    """Return the default profile under a name; `supervisor` is the label of this daemon, "" if nothing confines it."""
    senders = ("unconfined", "runc", "crun", *([supervisor] if supervisor else []))
    return _TEXT.substitute(name=name, senders="\n".join(f'  signal receive peer="{one}",' for one in senders))


class AppArmor:
    """The profiles that this machine's kernel has. What waits for the parser or reads files is called in threads."""

    def __init__(self, offload: Offload, sysfs: Path = Path("/sys"), path: str | None = None) -> None:
        """Look below `sysfs`, and in the folders of `path`, by default the daemon's, for the parser."""
        self._offload = offload
        self._enabled = sysfs / "module/apparmor/parameters/enabled"
        self._profiles = sysfs / "kernel/security/apparmor/profiles"
        self._path = f"{os.environ.get('PATH', os.defpath)}:{_PARSER_FOLDERS}" if path is None else path
        self._lock = threading.Lock()
        self._brought: set[str] = set()  # the profiles of which the kernel has this version's text
        self._has_told = False

    def why_off(self) -> str:
        """Return why nothing can be confined by AppArmor, "" if that is possible."""
        if in_user_namespace():
            return "this daemon is an ordinary user's, who may not look at AppArmor's profiles"
        if not self._enabled.exists():
            return "AppArmor is not there on this machine"
        if self._enabled.read_text().strip() != "Y":
            return "AppArmor is turned off on this machine"
        return "" if self._profiles.exists() else f"AppArmor's profiles cannot be seen: there is no {self._profiles}"

    def has(self, name: str) -> bool:
        """Whether the kernel has a profile. Only where AppArmor is on."""
        return any(line.rpartition(" (")[0] == name for line in self._profiles.read_text().splitlines())

    def default(self, name: str) -> str:
        """Return `name`, one of the default profile's, or "" where containers run without; the log says that once."""
        reason = self._why_not(name)
        if reason and not self._has_told:
            self._has_told = True
            _log.warning("apparmor.unconfined", reason=reason)
        return "" if reason else name

    def check(self, name: str) -> None:
        """Raise FailedPrecondition, with what is missing, if containers cannot have the default profile `name`."""
        if reason := self._why_not(name):
            raise FailedPrecondition(f"apparmor profile {name}: {reason}")

    async def prepare(self, spec: bytes) -> None:
        """Give the kernel the default profile that a spec's JSON names, if it does. Raises Internal."""
        for name in (DEFAULT, POD_DEFAULT):
            if name.encode() in spec:  # wherever that is in it: to load one that nobody uses harms nobody
                await self._offload.run(self._bring, name)

    def _why_not(self, name: str) -> str:
        reason = self.why_off()
        if reason or self._parser() or self.has(name):
            return reason
        return f"there is no {_PARSER} to load it with: install the package apparmor"

    def _parser(self) -> str | None:
        return shutil.which(_PARSER, path=self._path)

    def _bring(self, name: str) -> None:
        """Load a profile unless this daemon has and the kernel has it still."""
        with self._lock:
            parser = self._parser()
            if self.why_off() or parser is None or (name in self._brought and self.has(name)):
                return  # what then cannot be had, the runtime refuses
            text = profile_text(name, _own_label())
            try:
                done = subprocess.run(
                    [parser, "-Kr"], input=text, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT,
                    check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Internal(f"apparmor profile {name}: {error}") from error
            if done.returncode:
                raise Internal(f"apparmor profile {name}: {parser}: {done.stderr.strip()[-_MAX_ERROR_TEXT:]}")
            self._brought.add(name)


def _own_label() -> str:
    """Return the profile that confines this process, "" for none, and for one that no rule could name."""
    for name in _OWN_LABELS:
        try:
            label = Path("/proc/self", name).read_text().strip("\0\n").partition(" (")[0]
        except OSError:
            continue
        return label if label != "unconfined" and _PLAIN_LABEL.fullmatch(label) else ""
    return ""
