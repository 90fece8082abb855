"""containerd.services.introspection.v1."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import ClassVar, Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from pyctr_wire.containerd.services.introspection.v1 import introspection_pb2 as pb
from pyctr_wire.containerd.types import introspection_pb2
from pyctr_wire.errors import Code, InvalidArgument, NotFound
from pyctrd.core.filters import Adaptor, compile_filters, text_field
from pyctrd.core.platforms import Platform
from pyctrd.core.values import dataclass
from pyctrd.offload import Offload
from pyctrd.rpc.convert.records import platform_to_proto
from pyctrd.rpc.convert.well_known import time_to_proto
from pyctrd.rpc.headers import Context
from pyctrd.runtime.runtime_versions import Warned
from pyctrd.runtime.runtimes import SHIMS

_WARNING: Final = "io.pyctr.deprecation/unsafe-runtime"
_RUNTIME: Final = ("io.containerd.runtime.v2", "task")

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
    error: str = ""  # why it cannot be used


class Introspection:
    """What the daemon is and can do. None of these calls needs the namespace header."""

    SERVICE: ClassVar = pb.DESCRIPTOR.services_by_name["Introspection"]

    def __init__(
        self,
        plugins: Sequence[Plugin],
        uuid: str,
        runtime_info: Callable[[bytes], bytes],
        warnings: Callable[[], Sequence[Warned]],
        bulk: Offload,
    ) -> None:
        """Describe `plugins`, in this order; `uuid` stays the same as long as the root directory does.

        `runtime_info` takes a runtime's options and returns its RuntimeInfo, both marshalled; it runs in `bulk`.
        `warnings` returns what an operator should know of runtimes in use.
        """
        self._plugins = tuple(plugins)
        self._runtime_info = runtime_info
        self._warnings = warnings
        self._bulk = bulk
        self._uuid = uuid
        self._pidns = os.stat("/proc/self/ns/pid").st_ino

    async def Plugins(self, request: pb.PluginsRequest, context: Context) -> pb.PluginsResponse:
        """Return the plugins that match. InvalidArgument."""
        matches = compile_filters(tuple(request.filters))
        plugins = (_plugin_to_proto(plugin) for plugin in self._plugins if matches(_adaptor(plugin)))
        return pb.PluginsResponse(plugins=plugins)

    async def Server(self, request: Empty, context: Context) -> pb.ServerResponse:
        """Return who serves, and what should be changed: containerd's clients show it as deprecations."""
        warnings = (
            pb.DeprecationWarning(id=_WARNING, message=warned.text, last_occurrence=time_to_proto(warned.last_used))
            for warned in self._warnings()
        )
        return pb.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=self._pidns, deprecations=warnings)

    async def PluginInfo(self, request: pb.PluginInfoRequest, context: Context) -> pb.PluginInfoResponse:
        """Return one plugin; of the runtime also what it can do, if the request says which one. NotFound."""
        plugin = next((one for one in self._plugins if (one.type, one.id) == (request.type, request.id)), None)
        if plugin is None:
            raise NotFound(f"plugin {request.type}.{request.id}")
        response = pb.PluginInfoResponse(plugin=_plugin_to_proto(plugin))
        if (plugin.type, plugin.id) == _RUNTIME and request.HasField("options"):
            response.extra.type_url = introspection_pb2.RuntimeInfo.DESCRIPTOR.full_name
            response.extra.value = await self._bulk.run(self._runtime_info, _options_of(request.options))
        return response


def _options_of(message: AnyMessage) -> bytes:
    """Return the marshalled options in a RuntimeRequest. InvalidArgument; NotFound for a runtime that is not ours."""
    if message.type_url.rpartition("/")[2] != introspection_pb2.RuntimeRequest.DESCRIPTOR.full_name:
        raise InvalidArgument(f'options of type "{message.type_url}" for a runtime')
    try:
        request = introspection_pb2.RuntimeRequest.FromString(message.value)
    except DecodeError as error:
        raise InvalidArgument("options are a damaged RuntimeRequest") from error
    if request.runtime_path and request.runtime_path not in SHIMS:
        raise NotFound(f'runtime "{request.runtime_path}"')
    return request.options.SerializeToString() if request.HasField("options") else b""


def _adaptor(plugin: Plugin) -> Adaptor:
    fields = {"type": plugin.type, "id": plugin.id}
    return lambda path: text_field(fields.get(path[0], "")) if len(path) == 1 else ("", False)


def _plugin_to_proto(plugin: Plugin) -> pb.Plugin:
    return pb.Plugin(
        type=plugin.type,
        id=plugin.id,
        requires=plugin.requires,
        platforms=map(platform_to_proto, plugin.platforms),
        exports=plugin.exports,
        capabilities=plugin.capabilities,
        # Clients look for these two words, which tell that nobody has to mend anything.
        init_err=Status(code=Code.UNIMPLEMENTED, message=f"{plugin.error}: skip plugin") if plugin.error else None,
    )
