"""What is wrong with a configuration whose values are all of the right kind."""

import os
import re
from collections.abc import Mapping
from typing import Final

from pyctr_wire.errors import ApiError
from pyctrd.config.tables import Config, ProxyKind, ProxyPlugin
from pyctrd.config.values import ConfigError
from pyctrd.core.addresses import Tcp, parse_address

# Snapshotters: what no other program's can be called.
BUILT_IN: Final = frozenset(
    {"overlayfs", "native", "btrfs", "erofs", "fuse-overlayfs", "blockfile", "devmapper", "aufs"}
)


def check(config: Config, source: str) -> None:
    """Raise ConfigError for values that are well-formed and cannot work."""
    for key, path in (("root", config.root), ("state", config.state)):
        if not path.is_absolute():
            raise ConfigError(f'{source}: {key} must be an absolute path, not "{path}"')
    if config.userns.remap:
        from pyctrd.remapping import maps_for  # not loaded where nobody wants it

        try:
            maps_for(config.userns.remap)
        except ApiError as error:
            raise ConfigError(f"{source}: userns.remap: {error}") from error
    _check_proxies(config.proxy_plugins, source)
    _check_addresses(config, source)
    for directory in config.cdi.directories:
        if not directory.startswith("/"):
            raise ConfigError(f'{source}: cdi.directories must be absolute paths, not "{directory}"')
    streaming = config.cri.streaming
    if streaming.port >= 1 << 16:
        raise ConfigError(f"{source}: cri.streaming.port must be below 65536, not {streaming.port}")
    if bool(streaming.certificate) != bool(streaming.key):
        raise ConfigError(f"{source}: cri.streaming.certificate and cri.streaming.key need each other")


def _check_addresses(config: Config, source: str) -> None:
    for key, addresses in (("address", (config.address,)), ("addresses", config.grpc.addresses)):
        for address in addresses:
            try:
                parsed = parse_address(address)
            except ValueError as error:
                raise ConfigError(f"{source}: grpc.{key} {error}") from error
            if key == "address" and isinstance(parsed, Tcp):
                raise ConfigError(f"{source}: grpc.address must be a path; {address} belongs in grpc.addresses")
    try:
        _ = config.metrics_address
    except ValueError as error:
        raise ConfigError(f"{source}: metrics.address must be HOST:PORT, not {config.metrics.address}") from error
    tls = config.grpc
    if config.ports and not (tls.tcp_tls_ca and tls.tcp_tls_cert and tls.tcp_tls_key):
        raise ConfigError(
            f"{source}: {config.ports[0]} is served with mutual TLS only: set grpc.tcp_tls_ca, grpc.tcp_tls_cert and"
            " grpc.tcp_tls_key"
        )


def _check_proxies(proxies: Mapping[str, ProxyPlugin], source: str) -> None:
    for name, proxy in proxies.items():
        if name in BUILT_IN:
            raise ConfigError(f"{source}: proxy_plugins.{name}: a snapshotter of that name is built in")
        if not os.path.isabs(proxy.address.removeprefix("unix://")):
            raise ConfigError(f'{source}: proxy_plugins.{name}.address must be an absolute path, not "{proxy.address}"')
        if not re.fullmatch(r"[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", name):
            raise ConfigError(f'{source}: proxy_plugins."{name}": its name must be letters and digits, joined by . _ -')
    if len(stores := [name for name, proxy in proxies.items() if proxy.type is ProxyKind.CONTENT]) > 1:
        raise ConfigError(f"{source}: proxy_plugins: only one can keep the content, not {', '.join(stores)}")
