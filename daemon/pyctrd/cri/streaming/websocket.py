"""WebSockets: numbered channels as messages, and SPDY in a tunnel.

channels   each message is a channel's number and its bytes: one byte and binary, or, in the variants called
           base64, an ASCII digit and base64 as text. In v5 the two bytes [255, n] end channel n.
tunnel     SPDY/3.1's bytes, cut into binary messages anywhere
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from pyctrd.cri.streaming.flow import Activity

_MAX_MESSAGE: Final = 1 << 20
_END_OF_CHANNEL: Final = 255
_CLOSE_TIMEOUT: Final = 10.0
TUNNEL_PREFIX: Final = "SPDY/3.1+"


def offered(request: web.BaseRequest) -> list[str]:
    """Return the sub-protocols that a client can speak, what it likes best first."""
    lines = request.headers.getall("Sec-WebSocket-Protocol", [])
    return [name for line in lines for part in line.split(",") if (name := part.strip())]


async def accept(request: web.BaseRequest, known: Sequence[str]) -> tuple[web.WebSocketResponse, str]:
    """Upgrade a connection; return it and the sub-protocol, "" if the client named none.

    Raises HTTPForbidden if it named only others than `known`, HTTPBadRequest for a handshake that is wrong.
    """
    names = offered(request)
    if names and not set(names) & set(known):
        raise web.HTTPForbidden(text=f"none of the sub-protocols {', '.join(names)} is served; {', '.join(known)} are")
    # Pings are answered by `_receive`, which tells of them; a compressed message could be a bomb.
    socket = web.WebSocketResponse(
        protocols=known, max_msg_size=_MAX_MESSAGE, autoping=False, compress=False, timeout=_CLOSE_TIMEOUT
    )
    await socket.prepare(request)
    return socket, socket.ws_protocol or ""


class Channels:
    """A WebSocket that carries numbered channels."""

    def __init__(self, socket: web.WebSocketResponse, protocol: str, activity: Activity) -> None:
        """Code messages as the sub-protocol demands."""
        self._socket = socket
        self._text = "base64." in protocol
        self._ends_channels = protocol.startswith("v5.")
        self._activity = activity
        self._close_code = WSCloseCode.OK

    async def send(self, channel: int, data: bytes) -> None:
        """Send a channel's bytes, waiting while the client takes nothing. Raises ConnectionError if it is gone."""
        if self._text:
            await self._socket.send_str(str(channel) + base64.b64encode(data).decode())
        else:
            await self._socket.send_bytes(bytes([channel]) + data)
        self._activity.touch()

    async def receive(self) -> tuple[int, bytes | None]:
        """Return a channel and its bytes, None at the channel's end. Raises ConnectionError if the client is gone."""
        while True:
            message = await _receive(self._socket, self._activity)
            try:
                data = message.data.encode("latin-1") if message.type is WSMsgType.TEXT else message.data
                if not data:
                    continue
                if self._text:
                    return data[0] - ord("0"), base64.b64decode(data[1:], validate=True)
            except (UnicodeEncodeError, binascii.Error) as error:
                self._close_code = WSCloseCode.INVALID_TEXT
                raise ConnectionAbortedError("the client sent text that is not base64") from error
            if data[0] != _END_OF_CHANNEL:
                return data[0], data[1:]
            if self._ends_channels and len(data) > 1:
                return data[1], None

    async def close(self) -> None:
        """Send what is left, and close once the client has said that it has it, or does not say so for long."""
        await self._socket.close(code=self._close_code)


class Tunnel:
    """A WebSocket as a link for SPDY."""

    def __init__(self, socket: web.WebSocketResponse, activity: Activity) -> None:
        """Send and receive over `socket`."""
        self._socket = socket
        self._activity = activity

    async def read(self) -> bytes:
        """Return what has come, nothing at the end."""
        try:
            while True:
                message = await _receive(self._socket, self._activity)
                if message.type is WSMsgType.BINARY and message.data:
                    return bytes(message.data)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the client takes nothing. Raises ConnectionError if it has gone."""
        await self._socket.send_bytes(data)

    async def close_writing(self) -> None:
        """A WebSocket is closed both ways, with a message that the client answers."""
        await self._socket.close()


async def _receive(socket: web.WebSocketResponse, activity: Activity) -> WSMessage:
    """Return the next message with data. Raises ConnectionResetError if there is none any more."""
    while True:
        message = await socket.receive()
        activity.touch()
        match message.type:
            case WSMsgType.TEXT | WSMsgType.BINARY:
                return message
            case WSMsgType.PING:
                await socket.pong(message.data)
            case WSMsgType.PONG:
                pass
            case _:
                raise ConnectionResetError("the client has closed the connection")
