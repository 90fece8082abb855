"""Exec and attach: the client's bytes go to a process, the process's to the client, and at last how it ended.

Versions of the protocol, whatever carries it: v2 lets the end of stdin be told, v3 adds the terminal's size, v4 the
status as JSON, v5 (of WebSockets) an end of stdin there too. Source: Kubernetes, remotecommand's v1 to v5.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from pyctr_wire.errors import ApiError
from pyctrd.cri.streaming.flow import Inbox

# Of a size's JSON: {"Width":65535,"Height":65535} and some air.
_MAX_SIZE_TEXT: Final = 1024


class Output(IntEnum):
    """Where a process wrote; the numbers are the WebSocket channels."""

    STDOUT = 1
    STDERR = 2


class Streams(NamedTuple):
    """Which streams of a process a client wants."""

    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


class Session(Protocol):
    """A process's streams, as one client has them."""

    def output(self) -> AsyncIterator[tuple[Output, bytes]]:
        """Yield what the process writes, until it has ended and all was yielded.

        Nothing is read ahead while the consumer is busy. Raises ApiError if the streams cannot be followed any more.
        """

    async def write_stdin(self, data: bytes) -> None:
        """Wait until the process's input has taken `data`, or will never: what it does not take is dropped."""

    async def close_stdin(self) -> None:
        """Tell that the client's input has ended."""

    async def resize(self, columns: int, rows: int) -> None:
        """Set the terminal's size."""

    async def wait(self) -> int:
        """Return the exit code once the process has ended: 0 for an attached container, however it ended."""

    async def abandon(self) -> None:
        """Let go, whether the process has ended or not; called once, at the end. Raises nothing."""


class Sessions(Protocol):
    """Who can start processes in containers and attach to them."""

    async def exec(self, container_id: str, command: Sequence[str], streams: Streams) -> Session:
        """Start `command`; no output is lost. Raises ApiError."""

    async def attach(self, container_id: str, streams: Streams) -> Session:
        """Join a container's streams. Raises ApiError."""


class Outcome(NamedTuple):
    """How a session ended: an error, or an exit code."""

    exit_code: int = 0
    error: str = ""

    def as_json(self) -> bytes:
        """Return it as v4 and v5 tell it: a Status of Kubernetes' API. Nothing else carries the exit code."""
        status: dict[str, Any] = {"metadata": {}, "status": "Failure", "message": self.as_text()}
        if self.error:
            status |= {"reason": "InternalError", "details": {"causes": [{"message": self.error}]}, "code": 500}
        elif self.exit_code:
            cause = {"reason": "ExitCode", "message": str(self.exit_code)}
            status |= {"reason": "NonZeroExitCode", "details": {"causes": [cause]}}
        else:
            status = {"metadata": {}, "status": "Success"}
        return json.dumps(status, separators=(",", ":")).encode()

    def as_text(self) -> str:
        """Return it as v1 to v3 tell it: nothing is success."""
        if self.error:
            return f"Internal error occurred: {self.error}"
        return f"command terminated with non-zero exit code: {self.exit_code}" if self.exit_code else ""


class Client(Protocol):
    """The other end of a session, whatever it speaks."""

    stdin: Inbox | None  # None if it was not asked for
    sizes: Inbox | None  # texts of JSON

    async def send(self, output: Output, data: bytes) -> None:
        """Send, waiting while the client takes nothing. Raises ConnectionError if it is gone."""

    async def finish(self, outcome: Outcome) -> None:
        """End the output, then tell the outcome. Raises ConnectionError if the client is gone."""

    async def closed(self) -> None:
        """Return once the client is gone."""


async def run(client: Client, start: Callable[[], Awaitable[Session]]) -> None:
    """Serve `client` with the session that `start` returns. Raises ConnectionError if the client leaves early."""
    try:
        session = await start()
    except ApiError as error:
        await client.finish(Outcome(error=str(error)))
        return
    try:
        await client.finish(await _relay(client, session))
    finally:
        await session.abandon()


async def _relay(client: Client, session: Session) -> Outcome:
    """Pass everything on until the process has ended; raises ConnectionError if the client leaves before."""
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(_until_gone(client))]
            if client.stdin is not None:
                helpers.append(group.create_task(_pass_stdin(client.stdin, session)))
            if client.sizes is not None:
                helpers.append(group.create_task(_pass_sizes(client.sizes, session)))
            async for output, data in session.output():
                await client.send(output, data)
            outcome = Outcome(await session.wait())
            for helper in helpers:
                helper.cancel()
    except* ConnectionError as left:
        raise first_of(left) from None
    except* ApiError as failed:
        outcome = Outcome(error=str(first_of(failed)))
    return outcome


def first_of(group: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first error in a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


async def _until_gone(client: Client) -> None:
    await client.closed()
    raise ConnectionResetError("the client has closed the connection")


async def _pass_stdin(inbox: Inbox, session: Session) -> None:
    while data := await inbox.read():
        await session.write_stdin(data)
    await session.close_stdin()


async def _pass_sizes(inbox: Inbox, session: Session) -> None:
    text = ""
    while data := await inbox.read():
        sizes, text = parse_sizes(text + data.decode("latin-1"))
        for columns, rows in sizes:
            await session.resize(columns, rows)


def parse_sizes(text: str) -> tuple[list[tuple[int, int]], str]:
    """Return the (columns, rows) at the beginning of `text`, and the rest, a size that is not complete.

    What is no size is skipped: a terminal of the wrong size is better than none.
    """
    sizes: list[tuple[int, int]] = []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            size, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            return sizes, text if len(text) < _MAX_SIZE_TEXT else ""
        text = text[end:]
        if isinstance(size, dict):
            columns, rows = size.get("Width"), size.get("Height")
            if isinstance(columns, int) and isinstance(rows, int) and 0 < columns < 1 << 16 and 0 < rows < 1 << 16:
                sizes.append((columns, rows))
    return sizes, ""
