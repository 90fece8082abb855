"""A private containerd for a test: started, killed and checked as a daemon of ours is."""

import os
import shutil
from pathlib import Path
from typing import Final

from .daemon_process import DaemonProcess

_CONFIG: Final = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{address}"
"""


class RealContainerd(DaemonProcess):
    """containerd's own daemon, without pods."""

    def __init__(self, program: str = "containerd") -> None:
        """Run `program`, Debian's if none is named, with the shim that is beside it."""
        super().__init__(environment={"PATH": f"{Path(shutil.which(program) or program).parent}:{os.environ['PATH']}"})
        (self.base / "containerd.toml").write_text(_CONFIG.format(base=self.base, address=self.address))
        self.command = (program, "-c", str(self.base / "containerd.toml"))
