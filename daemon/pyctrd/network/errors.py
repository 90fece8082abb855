"""What goes wrong with networks, for people and for those who must tell one failure from another."""

from pyctr_wire.errors import UnknownError


class NetworkNotReady(UnknownError):
    """There is no network that pods could be attached to; the text says why."""


class PluginError(UnknownError):
    """A plugin refused, failed, did not end, or gave an answer that is none.

    `cni_code` is the plugin's own (CNI specification, "Error"), 0 where it gave none: below 100 the specification's.
    """

    def __init__(self, plugin: str, command: str, message: str, code: int = 0) -> None:
        """Say which plugin did not do what, and why."""
        said = f" (code {code})" if code else ""
        super().__init__(f'plugin type="{plugin}" failed ({command.lower()}): {message}{said}')
        self.plugin, self.command, self.cni_code, self.message = plugin, command, code, message
