"""CNI's common plugins without programs: three processes for each pod take longer than its containers do.

Each does what the program of its name does, to the same configuration, with the same files, and answers the same.
What a configuration may ask for and we do not know is left to the program: see `can`.
"""

from collections.abc import Mapping
from typing import Final

from pyctrd.network.own import bandwidth, bridge, firewall, host_local, loopback, portmap
from pyctrd.network.plugins import InProcess

PLUGINS: Final[Mapping[str, InProcess]] = {
    "bandwidth": bandwidth.Bandwidth(),
    "bridge": bridge.Bridge(),
    "firewall": firewall.Firewall(),
    "host-local": host_local.HostLocal(),
    "loopback": loopback.Loopback(),
    "portmap": portmap.Portmap(),
}
