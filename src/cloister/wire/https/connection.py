"""One client's connection to an HTTPS server: it authenticates, then bounds, then reads, then
parses.

A request's head is bounded and has a deadline. The server compares the token in it before it asks
for a byte of the body. The operation bounds the body, and the body takes a share of the bytes that
may be in flight; only then the server reads and parses it. The work on it takes shares of memory
and threads.
"""

import asyncio
import concurrent.futures
import contextlib
import socket
import ssl
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cloister.errors import CloisterError, ProtocolError, ServiceUnavailable, printable
from cloister.wire.https.admission import BusyError, Crowd, QuietLog, ServerLimits, Shares
from cloister.wire.https.bodies import CONTENT_TYPE, MAX_MESSAGE_CHARS, Body, decode, encode
from cloister.wire.https.error_bodies import error_body
from cloister.wire.https.head import END, MAX_HEAD_BYTES, RequestHead, parse_head

QUICK_BYTES = 1 << 16
"""Requests up to this size are read by the event loop itself."""
READ_BYTES = 1 << 18
LINGER_S = 1.0
RETRY_AFTER_S = 1
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 408: "Request Timeout",
           500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Pending:
    """An answer that leaves when `after` has its result; if that is an error, the error leaves."""

    body: Body
    after: concurrent.futures.Future[None]


@dataclass(frozen=True, repr=False)
class Job:
    """The work that a request asks for.

    run      does it, in a thread
    attempt  does it before that, in the event loop, if it takes less than to hand it over and waits
             for nothing; else gives None, having done nothing
    lane     jobs of one lane may wait for each other; they get some of the threads, never all;
             without one, those of a caller are a lane
    nbytes   memory that the work and its answer take, about
    """

    run: Callable[[], Body | Pending]
    attempt: Callable[[], Body | Pending | None] | None = None
    lane: Hashable = None
    nbytes: int = 0


@dataclass(frozen=True, repr=False)
class Route:
    """An operation that a caller may ask for, before anything but its head was read.

    max_bytes   of the body
    handle      request -> job, without any work yet; raises CloisterError to refuse
    """

    max_bytes: int
    handle: Callable[[Body], Job]


@dataclass(frozen=True, repr=False)
class Principal:
    """A caller: who showed a token.

    identity   tells this caller's connections and shares from others'
    route      operation -> route; raises CloisterError to refuse
    stranger   who showed no token, where that is allowed: the connection keeps its place among
               strangers, and the whole request has to come in the time that a head has
    """

    identity: Hashable
    route: Callable[[str], Route]
    stranger: bool = False


Admit = Callable[[str | None], Principal]
"""Who shows this token; raises CloisterError for a stranger. Called in the event loop."""

_Answer = tuple[bytes, concurrent.futures.Future[None] | None]


@dataclass(frozen=True, repr=False)
class House:
    """The common state of a server's connections."""

    admit: Admit
    limits: ServerLimits
    crowd: Crowd
    bodies: Shares
    memory: Shares
    turns: Shares
    workers: concurrent.futures.Executor
    readers: concurrent.futures.Executor
    log: QuietLog


class Connection:
    """Serves one client until it leaves, is dropped, or breaks a rule."""

    def __init__(self, house: House, sock: socket.socket) -> None:
        self._house, self._socket = house, sock
        self._task: asyncio.Task[None] | None = None
        self._reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
        self._writer: asyncio.StreamWriter
        self._open = False
        self.idle = True

    def start(self, context: ssl.SSLContext) -> "asyncio.Task[None]":
        """Serve, in a task."""
        self._task = asyncio.get_running_loop().create_task(self._serve(context))
        return self._task

    def end(self) -> None:
        """Release the connection; its task is done, or was dropped before it began."""
        self._house.crowd.left(self)
        if self._open:
            self._writer.transport.abort()
        self._socket.close()

    def drop(self) -> None:
        """Close the connection now."""
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, context: ssl.SSLContext) -> None:
        try:
            async with asyncio.timeout(self._house.limits.head_s):
                await self._handshake(context)
                head = await self._head()
            while head is not None and await self._request(head):
                async with asyncio.timeout(self._house.limits.idle_s):
                    self.idle = True
                    head = await self._head()
            await self._close()
        except (OSError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError):
            pass  # the client left, was too slow, or speaks another protocol
        except asyncio.CancelledError:
            pass  # dropped
        except Exception as error:  # noqa: BLE001  (a fault of ours: for the server's log alone)
            self._house.log.line(f"a connection failed: {described(error)}")

    async def _handshake(self, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            self._socket,
            ssl=context,
            ssl_handshake_timeout=self._house.limits.head_s,
            ssl_shutdown_timeout=LINGER_S,
        )
        self._writer = asyncio.StreamWriter(transport, protocol, self._reader, loop)
        self._open = True

    async def _head(self) -> RequestHead | None:
        """The next request's head; None: the client has left."""
        try:
            data = await self._reader.readuntil(END)
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            await self._refuse(400, ProtocolError(f"a head has at most {MAX_HEAD_BYTES} B"))
            return None
        try:
            return parse_head(data)
        except ProtocolError as error:
            await self._refuse(400, error)
            return None

    async def _request(self, head: RequestHead) -> bool:
        """Answer one request; tells whether another may follow on this connection."""
        house = self._house
        self.idle = False
        try:
            principal = house.admit(head.token)
        except CloisterError as error:
            await self._refuse(401, error)
            return False
        try:
            caller = principal.identity
            if not principal.stranger:
                house.crowd.known(self, caller)
            route = principal.route(head.operation())
            length = head.length(route.max_bytes)
            async with house.bodies.taken(caller, length):
                data = await self._body(length, stranger=principal.stranger)
                async with contextlib.AsyncExitStack() as held:
                    status, answer = await self._answer(caller, route, data, held)
                    await self._send(status, answer, closes=head.closes)
        except CloisterError as error:
            await self._refuse(400, error)
            return False
        except BusyError:
            await self._refuse(503, ServiceUnavailable("the server is busy; ask again later"))
            return False
        return not head.closes

    async def _body(self, length: int, *, stranger: bool) -> bytearray:
        data = bytearray()
        limits = self._house.limits
        most_s = limits.head_s if stranger else limits.body_s + length / limits.bytes_per_s
        try:
            async with asyncio.timeout(most_s):
                while len(data) < length:
                    piece = await self._reader.read(min(length - len(data), READ_BYTES))
                    if not piece:
                        raise ConnectionError
                    data += piece
        except TimeoutError:
            await self._refuse(408, ProtocolError("the request took too long"))
            raise
        return data

    async def _answer(
        self,
        caller: Hashable,
        route: Route,
        data: bytearray,
        held: contextlib.AsyncExitStack,
    ) -> tuple[int, bytes]:
        """Status and answer; `held` keeps the memory until the answer has left."""
        try:
            answer, after = await self._work(caller, route, data, held)
            if after is not None:
                await asyncio.wrap_future(after)
        except CloisterError as error:
            return 400, _refusal(error)
        except BusyError:
            raise
        except Exception as error:  # noqa: BLE001  (a fault of ours: for the server's log alone)
            self._house.log.line(f"a request failed: {described(error)}")
            fault = ProtocolError("the server failed on this request; see its log")
            return 500, _refusal(fault)
        return 200, answer

    async def _work(
        self,
        caller: Hashable,
        route: Route,
        data: bytearray,
        held: contextlib.AsyncExitStack,
    ) -> _Answer:
        house, loop = self._house, asyncio.get_running_loop()
        if len(data) <= QUICK_BYTES:
            job = route.handle(decode(data))
            found = job.attempt() if job.attempt is not None else None
            if found is not None:
                return _ready(found)
        else:
            job = await loop.run_in_executor(house.readers, lambda: route.handle(decode(data)))
        await held.enter_async_context(house.memory.taken(caller, job.nbytes))
        async with house.turns.taken(job.lane or caller, 1):
            return await loop.run_in_executor(house.workers, lambda: _ready(job.run()))

    async def _refuse(self, status: int, error: CloisterError) -> None:
        """Answer without having read the body: what follows on the connection is not understood."""
        await self._send(status, _refusal(error), closes=True)
        # A connection that is reset at once may take the answer with it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                rest = READ_BYTES
                while rest > 0 and (piece := await self._reader.read(rest)):
                    rest -= len(piece)

    async def _close(self) -> None:
        """Let what was written leave, then close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                self._writer.close()
                await self._writer.wait_closed()

    async def _send(self, status: int, answer: bytes, *, closes: bool) -> None:
        limits, lines = self._house.limits, [f"HTTP/1.1 {status} {REASONS[status]}"]
        lines += [f"content-type: {CONTENT_TYPE}", f"content-length: {len(answer)}"]
        if status == 503:
            lines.append(f"retry-after: {RETRY_AFTER_S}")
        if closes:
            lines.append("connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
        if len(answer) <= QUICK_BYTES:
            self._writer.write(head + answer)
            # A caller that asks on and takes no answer has them kept, until the next has to wait.
            if not self._writer.transport.get_write_buffer_size():
                return
            answer = b""
        else:
            self._writer.write(head)
        async with asyncio.timeout(limits.body_s + len(answer) / limits.bytes_per_s):
            await self._writer.drain()
            for start in range(0, len(answer), READ_BYTES):
                self._writer.write(memoryview(answer)[start : start + READ_BYTES])
                await self._writer.drain()


def described(error: Exception) -> str:
    """A fault in one line: its error and the place where it was raised."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f" ({code.co_filename}:{trace.tb_lineno}, {code.co_name})"
        trace = trace.tb_next
    return printable(f"{type(error).__name__}: {error}{place}", most=MAX_MESSAGE_CHARS)


def _ready(found: Body | Pending) -> _Answer:
    """The bytes of an answer, and what they have to wait for."""
    if isinstance(found, Pending):
        return encode(found.body), found.after
    return encode(found), None


def _refusal(error: CloisterError) -> bytes:
    return encode(error_body(error))
