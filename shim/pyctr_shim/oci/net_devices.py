"""Moving network devices of the host into a container's network namespace, their addresses with them.

Done by the parent, which may do so on both sides, while the container waits: a device loses its
addresses on the way and is down, so they are read before and given back after. When the namespace
ends, the kernel hands a physical device back and deletes a virtual one.
Source: OCI runtime specification 1.3, config-linux.md, "Network Devices"; rtnetlink(7).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pyctr_shim.oci.errors import OciError
from pyctr_sys.namespaces import Clone, setns

_NEW_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 20, 22
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _EXCL, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_IFLA_IFNAME, _IFLA_NET_NS_PID = 3, 19
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_KEPT: Final = {_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS}
_PERMANENT: Final = 0x80
_UNIVERSE: Final = 0
_IFF_UP: Final = 1
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_BUFFER: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class _Address:
    family: int
    prefix_length: int
    flags: int
    attributes: dict[int, bytes]


def move(devices: Mapping[str, Mapping[str, Any]], pid: int, pidfd: int) -> None:
    """Move devices, by their names on the host, into a process's network namespace, and set them up there.

    Raises OciError naming the device; those moved before it stay with the container. Borrows the pidfd. The calling
    thread is in the container's network namespace for a moment.
    """
    for name, wanted in devices.items():
        try:
            _move_one(name, (wanted or {}).get("name") or name, pid, pidfd)
        except OSError as error:
            raise OciError(f"linux.netDevices: {name}: {error.strerror}", error.errno or 0) from None


def _move_one(name: str, new_name: str, pid: int, pidfd: int) -> None:
    with _Netlink() as host:
        index = socket.if_nametoindex(name)
        addresses = [address for owner, address in host.addresses() if owner == index]
        with _network_of(pidfd):
            before = {name for _, name in socket.if_nameindex()}
        if new_name in before:  # the kernel would only find out when the device has moved
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        host.change_link(index, {_IFLA_IFNAME: f"{new_name}\0".encode(), _IFLA_NET_NS_PID: struct.pack("=I", pid)})
    with _network_of(pidfd), _Netlink() as inside:
        # By what is new: the name may have been a pattern (eth%d), and the index may have been taken.
        index = next(number for number, name in socket.if_nameindex() if name not in before)
        for address in addresses:
            inside.add_address(index, address)
        inside.change_link(index, {}, up=True)


@contextmanager
def _network_of(pidfd: int) -> Iterator[None]:
    own_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(pidfd, Clone.NEWNET)
        yield
    finally:
        setns(own_fd, Clone.NEWNET)
        os.close(own_fd)


class _Netlink:
    """A connection to rtnetlink of the network namespace in which it is made."""

    def __enter__(self) -> "_Netlink":
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def change_link(self, index: int, attributes: Mapping[int, bytes], *, up: bool = False) -> None:
        flags = _IFF_UP if up else 0
        self._ask(_NEW_LINK, _ACK, _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags), attributes)

    def add_address(self, index: int, address: _Address) -> None:
        body = _ADDRESS.pack(address.family, address.prefix_length, address.flags, _UNIVERSE, index)
        self._ask(_NEW_ADDRESS, _ACK | _CREATE | _EXCL, body, address.attributes)

    def addresses(self) -> Iterator[tuple[int, _Address]]:
        """Return (index of the device, address) for those that somebody has set for good and for everywhere."""
        for body in self._ask(_GET_ADDRESS, _DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0), {}):
            family, prefix_length, flags, scope, index = _ADDRESS.unpack_from(body)
            attributes = dict(_attributes(body[_ADDRESS.size :]))
            if scope == _UNIVERSE and flags & _PERMANENT:
                kept = {kind: value for kind, value in attributes.items() if kind in _KEPT}
                yield index, _Address(family, prefix_length, flags, kept)

    def _ask(self, kind: int, flags: int, body: bytes, attributes: Mapping[int, bytes]) -> list[bytes]:
        """Send a request and return the bodies of the answers. Raises OSError with the kernel's verdict."""
        self._sequence += 1
        packed = b"".join(
            _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)
            for number, value in attributes.items()
        )
        length = _HEADER.size + len(body) + len(packed)
        self._socket.send(_HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0) + body + packed)
        answers: list[bytes] = []
        while True:
            data = self._socket.recv(_BUFFER)
            while data:
                length, answer, _, _, _ = _HEADER.unpack_from(data)
                content, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if answer in {_ERROR, _DONE}:
                    (number,) = struct.unpack_from("=i", content)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return answers
                answers.append(content)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
