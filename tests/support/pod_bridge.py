"""A bridge network for the pods of one daemon, by the real plugins' configuration; nothing of it is left."""

import itertools
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLUGINS = Path("/usr/lib/cni")
_numbers = itertools.count()  # of two bridges with the same addresses the machine reaches one


@contextmanager
def pod_bridge(directory: Path) -> Iterator[str]:
    """Write a network's configuration into `directory`, and yield what a daemon's own says to use it.

    Pods have an address, a way out behind the machine's own, and ports of the host. Skips without CNI plugins.
    """
    if not (_PLUGINS / "bridge").exists():
        pytest.skip(f"no CNI plugins in {_PLUGINS} (Debian package containernetworking-plugins)")
    name = f"pyt{uuid.uuid4().hex[:8]}"
    subnet = f"10.{os.getpid() % 100 + 100}.{(os.getpid() + next(_numbers)) % 250}.0/24"
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(directory / "addresses"),
    }
    network = {
        "cniVersion": "1.0.0",
        "name": name,
        "plugins": [
            {"type": "bridge", "bridge": name, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (directory / "net.conflist").write_text(json.dumps(network))
    try:
        yield f'[cri.cni]\nconf_dir = "{directory}"\n'
    finally:
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
