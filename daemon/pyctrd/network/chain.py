"""A network's plugins, one after the other: what each is given, and what becomes of its answer.

Source: CNI specification 1.1.0, "Section 3: Execution of Network Configurations"; CNI conventions, "Dynamic plugin
specific fields".
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyctrd.log import Logger
from pyctrd.network import results
from pyctrd.network.configuration import Network
from pyctrd.network.errors import PluginError
from pyctrd.network.plugins import Call, Plugins
from pyctrd.network.records import Attachment

_CHECK_SINCE: Final = "0.4.0"  # and DEL is given the result
_STATUS_SINCE: Final = "1.1.0"  # GC too

_log = Logger("pyctrd.network")


def add(plugins: Plugins, attachment: Attachment) -> Mapping[str, Any]:
    """Run ADD of each plugin and return the last one's result. Raises PluginError; nothing is undone then."""
    network = attachment.network
    previous: Mapping[str, Any] | None = None
    for plugin in network.plugins:
        answer = plugins.run(_call("ADD", attachment, plugin, previous))
        assert answer is not None
        try:
            result = results.parse(answer, network.version)
        except ValueError as error:
            raise PluginError(plugin["type"], "ADD", str(error)) from error
        # What we do not know in it stays, unless it is of another version than the next plugin is spoken to in.
        same = answer.get("cniVersion", network.version) == network.version
        previous = answer if same else results.render(result, network.version)
    assert previous is not None  # there is no network without plugins
    return previous


def delete(plugins: Plugins, attachment: Attachment) -> None:
    """Run DEL of each plugin, the last one first, all of them whatever becomes of the others.

    Raises the first one's PluginError.
    """
    failures: list[PluginError] = []
    previous = attachment.result if attachment.network.at_least(_CHECK_SINCE) else None
    for plugin in reversed(attachment.network.plugins):
        try:
            plugins.run(_call("DEL", attachment, plugin, previous))
        except PluginError as error:
            failures.append(error)
    for failure in failures[1:]:
        _log.warning("network.delete_failed", container=attachment.container, error=str(failure))
    if failures:
        raise failures[0]


def check(plugins: Plugins, attachment: Attachment) -> None:
    """Run CHECK of each plugin, where the network's version and administrator want it. Raises PluginError."""
    network = attachment.network
    if network.disable_check or not network.at_least(_CHECK_SINCE):
        return
    for plugin in network.plugins:
        plugins.run(_call("CHECK", attachment, plugin, attachment.result))


def status(plugins: Plugins, network: Network) -> None:
    """Raise PluginError if a plugin cannot serve an ADD now."""
    for plugin in network.plugins:
        if network.at_least(_STATUS_SINCE) or plugins.is_own(plugin):
            plugins.run(Call("STATUS", "", "", "", "", _named(network, plugin)))


def collect(plugins: Plugins, network: Network, valid: Iterable[tuple[str, str]]) -> None:
    """Let each plugin remove what belongs to none of the `valid` (container, interface). Raises an ExceptionGroup.

    Programs know GC since CNI 1.1; ours are asked in each version.
    """
    if network.disable_gc:
        return
    attachments = [{"containerID": container, "ifname": interface} for container, interface in sorted(valid)]
    failures = []
    for plugin in network.plugins:
        if network.at_least(_STATUS_SINCE) or plugins.is_own(plugin):
            configuration = _named(network, plugin) | {"cni.dev/valid-attachments": attachments}
            try:
                plugins.run(Call("GC", "", "", "", "", configuration))
            except PluginError as error:
                failures.append(error)
    if failures:
        raise ExceptionGroup(f"garbage collection of network {network.name}", failures)


def _call(command: str, attachment: Attachment, plugin: Mapping[str, Any], previous: Mapping[str, Any] | None) -> Call:
    configuration = _named(attachment.network, plugin)
    if previous is not None:
        configuration["prevResult"] = previous
    wanted = plugin.get("capabilities") or {}
    runtime = {name: value for name, value in attachment.runtime.items() if wanted.get(name) is True}
    if runtime:
        configuration["runtimeConfig"] = runtime
    return Call(
        command, attachment.container, attachment.netns, attachment.interface, attachment.arguments, configuration
    )


def _named(network: Network, plugin: Mapping[str, Any]) -> dict[str, Any]:
    return {**plugin, "name": network.name, "cniVersion": network.version}
