"""Labels on containers that the daemon writes and the command line reads."""

from typing import Final

OURS: Final = "pyctr.io/"  # what all that only we write begin with

NAME: Final = "pyctr.io/name"  # unique in a namespace
AUTO_REMOVE: Final = "pyctr.io/auto-remove"  # "true": goes when its task has ended
INTERACTIVE: Final = "pyctr.io/interactive"  # "true": stdin stays open for whoever attaches
RESTARTING: Final = "pyctr.io/restarting"  # "true": its old task goes, the new one has not been started yet
LOG_URI: Final = "pyctr.io/log-uri"  # what Tasks.Create is given for stdout and stderr
LOG_DRIVER: Final = "pyctr.io/log-driver"
LOG_PATH: Final = "pyctr.io/log-path"  # "": the driver keeps no file
# Of containerd's own clients, which honour it too.
STOP_SIGNAL: Final = "io.containerd.image.config.stop-signal"
RESTART_STATUS: Final = "containerd.io/restart.status"  # "running", "stopped", or "created" before the first start
RESTART_POLICY: Final = "containerd.io/restart.policy"
RESTART_COUNT: Final = "containerd.io/restart.count"
RESTART_EXPLICITLY_STOPPED: Final = "containerd.io/restart.explicitly-stopped"
RESTART_LOG_URI: Final = "containerd.io/restart.loguri"

# An image never sets these on its containers: they steer daemons (CVE-2026-53488).
CONTROL_PREFIXES: Final = (
    OURS,
    "containerd.io/",
    "io.containerd.",
    "io.cri-containerd",
    "nerdctl/",
    "com.docker/",
)
