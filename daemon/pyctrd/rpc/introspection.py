"""containerd.services.introspection.v1."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.empty_pb2 import Empty

from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2 as pb
from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2_grpc
from pyctr_wire.errors import NotFound
from pyctrd.core.filters import Adaptor, compile_filters, text_field
from pyctrd.core.platforms import Platform
from pyctrd.rpc import convert
from pyctrd.rpc.headers import Context

SERVICE: Final = "containerd.services.introspection.v1.Introspection"


@dataclass(frozen=True, slots=True)
class Plugin:
    """Something that the daemon can do, under the type and id that containerd's clients look for."""

    type: str
    id: str
    requires: tuple[str, ...] = ()
    platforms: tuple[Platform, ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()


class Introspection(introspection_pb2_grpc.IntrospectionServicer):
    """What the daemon is and can do. None of these calls needs the namespace header."""

    def __init__(self, plugins: Sequence[Plugin], uuid: str) -> None:
        """Describe `plugins`, in this order; `uuid` stays the same as long as the root directory does."""
        self._plugins = tuple(plugins)
        self._server = pb.ServerResponse(uuid=uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def Plugins(self, request: pb.PluginsRequest, context: Context) -> pb.PluginsResponse:
        """Return the plugins that match. InvalidArgument."""
        matches = compile_filters(tuple(request.filters))
        plugins = (_plugin_to_proto(plugin) for plugin in self._plugins if matches(_adaptor(plugin)))
        return pb.PluginsResponse(plugins=plugins)

    async def Server(self, request: Empty, context: Context) -> pb.ServerResponse:
        """Return who serves."""
        return self._server

    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Context) -> pb.PluginInfoResponse:
        """Return one plugin. NotFound."""
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (request.type, request.id):
                return pb.PluginInfoResponse(plugin=_plugin_to_proto(plugin))
        raise NotFound(f"plugin {request.type}.{request.id} not found")


def _adaptor(plugin: Plugin) -> Adaptor:
    fields = {"type": plugin.type, "id": plugin.id}
    return lambda path: text_field(fields.get(path[0], "")) if len(path) == 1 else ("", False)


def _plugin_to_proto(plugin: Plugin) -> pb.Plugin:
    return pb.Plugin(
        type=plugin.type,
        id=plugin.id,
        requires=plugin.requires,
        platforms=map(convert.platform_to_proto, plugin.platforms),
        exports=plugin.exports,
        capabilities=plugin.capabilities,
    )
