"""Where an ordinary user's daemon has its files: below the directories that the XDG base directory specification names.

$XDG_DATA_HOME/pyctr          what survives a reboot      ~/.local/share/pyctr
$XDG_RUNTIME_DIR/pyctr        sockets and bundles         /run/user/UID/pyctr
$XDG_CONFIG_HOME/pyctr        config.toml, certs.d        ~/.config/pyctr
"""

import os
from pathlib import Path
from typing import Final

# Set when the daemon enters its user namespace, in which it looks like root's: the uid outside.
VARIABLE: Final = "_PYCTR_ROOTLESS"


def is_rootless() -> bool:
    """Whether this daemon is an ordinary user's, before or after it has entered its user namespace."""
    return os.geteuid() != 0 or VARIABLE in os.environ


def data() -> Path:
    """Return the root directory."""
    return _home("XDG_DATA_HOME", ".local/share") / "pyctr"


def state() -> Path:
    """Return the state directory, whose parent may be missing: then nobody has logged in as a user."""
    uid = os.environ.get(VARIABLE) or os.geteuid()
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}") / "pyctr"


def configuration() -> Path:
    """Return the directory of the configuration."""
    return _home("XDG_CONFIG_HOME", ".config") / "pyctr"


def _home(variable: str, below_home: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / below_home)
