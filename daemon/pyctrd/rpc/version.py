"""containerd.services.version.v1: what clients may expect of us."""

from functools import cached_property
from typing import ClassVar, Final

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.version.v1 import version_pb2
from pyctrd.rpc.headers import Context

# Clients take this for a semantic version and turn features on by it: nerdctl uses the Transfer
# service from 2.0.0 on, dockerd and buildkitd compare too. So it is the release of containerd whose
# API we serve; who we are stands in the revision.
CONTRACT: Final = "v2.3.4"


class Version:
    """Serves the version."""

    SERVICE: ClassVar = version_pb2.DESCRIPTOR.services_by_name["Version"]

    async def Version(self, request: Empty, context: Context) -> bytes:
        """Return the contract's version, and ours as its revision."""
        return self._answer

    @cached_property
    def _answer(self) -> bytes:
        """The response, which is always the same, encoded."""
        from importlib.metadata import version  # loaded when somebody asks: a daemon that starts has no time for it

        return version_pb2.VersionResponse(version=CONTRACT, revision=f"pyctr-{version('pyctr')}").SerializeToString()
