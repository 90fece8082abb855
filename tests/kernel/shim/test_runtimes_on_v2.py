"""The tests of other runtimes once more, with version 2 of cgroups alone in sight."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.full, pytest.mark.timeout(300)]

_MOUNT = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup"


@pytest.mark.skipif(
    not Path("/sys/fs/cgroup/unified").is_dir(), reason="this machine has one version of cgroups anyway"
)
def test_in_a_mount_namespace_of_their_own() -> None:
    """All but those that limit memory: on a machine with both versions, that controller is with version 1."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not limits and not memory"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    suite = Path(__file__).with_name("test_runtimes.py")
    here = ["unshare", "--mount", "sh", "-c", f'{_MOUNT} && exec "$@"', "sh"]

    done = subprocess.run(
        [*here, *pytest_, str(suite)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=suite.parents[3],
        check=False,
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
