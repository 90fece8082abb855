"""CNI's common plugins without programs: three processes for each pod take longer than its containers do.

Each does what the program of its name does, to the same configuration, with the same files, and answers the same.
What a configuration may ask for and we do not know is left to the program: see `can`.
"""

from collections.abc import Collection, Mapping
from typing import Final

from pyctrd.network.own import bridge, host_local, loopback, portmap
from pyctrd.network.plugins import InProcess

_ALL: Final[Mapping[str, InProcess]] = {
    "bridge": bridge.Bridge(),
    "host-local": host_local.HostLocal(),
    "loopback": loopback.Loopback(),
    "portmap": portmap.Portmap(),
}


def plugins(kinds: Collection[str]) -> dict[str, InProcess]:
    """Return our plugins of these types, of which there may be some that we do not have."""
    return {kind: plugin for kind, plugin in _ALL.items() if kind in kinds}
