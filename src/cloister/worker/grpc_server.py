"""Serves trusted runtimes on other machines by gRPC: one stream, one engine per client.

The targets that a client loaded belong to its stream. They go with it when the client ends the
stream, is cut off, stays silent for too long, or keeps a place unused that another client needs.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from cloister.base.tls_identity import TlsIdentity
from cloister.errors import InputError, ProtocolError, RangeError
from cloister.wire.codec import Encoded, Head, encode
from cloister.wire.grpc.frames import Assembler, to_frames
from cloister.wire.grpc.grpc_link import CHANNEL_OPTIONS, METHOD
from cloister.wire.grpc.places import check_address
from cloister.wire.messages import Loaded, LoadSegment, Message
from cloister.worker.budget import MemoryBudget, Reservation

DEFAULT_MAX_CLIENTS = 8
DEFAULT_MAX_MESSAGE_BYTES = 1 << 30
DEFAULT_IDLE_S = 3600.0
DEFAULT_FIRST_S = 10.0
DEFAULT_YIELD_S = 60.0
_STOP_GRACE_S = 1.0
_WAITING = 8
"""Connections beyond the limit that are looked at, to be served in another's place or refused."""
_SERVER_OPTIONS = (
    # Two servers on one port would share its clients by chance.
    ("grpc.so_reuseport", 0),
    # Connections that do not begin, or begin and ask for nothing, are closed.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 30_000),
)


class Client:
    """What serves one connection: replies to messages, and cleans up.

    close   called by the connection's thread at its end
    cut     called by another one when the connection is gone, to end what computes for it
    """

    def __init__(
        self,
        handle: Callable[[Message], Message | None],
        *,
        close: Callable[[], None],
        cut: Callable[[], None] | None = None,
        encoder: Callable[[Message], Encoded] = encode,
    ) -> None:
        self.handle = handle
        self.close = close
        self.cut = cut
        self.encoder = encoder


@dataclass(frozen=True)
class WorkerLimits:
    """Bounds of a server.

    idle_s    a client that is silent for so long is cut
    first_s   the same until it has loaded something
    yield_s   a client that is silent for so long makes room when another one comes and all places
              are taken; one that has loaded nothing makes room at once
    """

    max_clients: int = DEFAULT_MAX_CLIENTS
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    idle_s: float = DEFAULT_IDLE_S
    first_s: float = DEFAULT_FIRST_S
    yield_s: float = DEFAULT_YIELD_S


@dataclass(eq=False)
class _Place:
    """A connection that is served."""

    context: grpc.ServicerContext
    heard_at: float
    used: bool = False  # something was loaded
    working: bool = False  # a message is being answered


class Server:
    """A running server; `close` stops it.

    new_client   makes the handler of each new connection
    budget       pays for messages while they arrive and are answered; default: any number
    identity     what clients pin; default: connections are not encrypted

    Raises   InputError when the address is malformed or cannot be used
    """

    def __init__(
        self,
        listen: str,
        *,
        new_client: Callable[[], Client],
        limits: WorkerLimits | None = None,
        budget: MemoryBudget | None = None,
        identity: TlsIdentity | None = None,
    ) -> None:
        host, _ = check_address(listen)
        self._limits = limits or WorkerLimits()
        self._new_client = new_client
        self._budget = budget or MemoryBudget()
        self._places: list[_Place] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        threads = self._limits.max_clients + _WAITING
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="client"),
            handlers=[_Handler(self._serve)],
            options=[*CHANNEL_OPTIONS, *_SERVER_OPTIONS],
            maximum_concurrent_rpcs=threads,
        )
        try:
            port = self._add_port(listen, identity)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {listen}: address in use or not of this machine; choose another"
            ) from error
        self.address = f"{host}:{port}"
        self._server.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _add_port(self, listen: str, identity: TlsIdentity | None) -> int:
        port: int
        if identity is None:
            port = self._server.add_insecure_port(listen)
        else:
            pair = identity.private_key, identity.certificate
            port = self._server.add_secure_port(listen, grpc.ssl_server_credentials([pair]))
        return port

    def wait(self) -> None:
        """Block until the server is closed."""
        self._server.wait_for_termination()

    def close(self) -> None:
        """Cut all connections and stop."""
        self._stopping.set()
        self._server.stop(_STOP_GRACE_S).wait()

    # ---- one connection

    def _serve(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            place = self._enter(context)
        except RangeError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        client = self._new_client()
        if client.cut is not None:
            context.add_callback(client.cut)
        reservation = Reservation(self._budget)
        try:
            yield from self._answers(frames, place, client, reservation)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except RangeError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        finally:
            self._leave(place)
            client.close()
            reservation.end()

    def _answers(
        self, frames: Iterator[bytes], place: _Place, client: Client, reservation: Reservation
    ) -> Iterator[bytes]:
        def admit(head: Head) -> None:
            # A segment is copied once more when it has arrived.
            reservation.take((2 if head.kind is LoadSegment else 1) * head.payload_bytes)

        assembler = Assembler(admit, max_payload_bytes=self._limits.max_message_bytes)
        for frame in frames:
            message = assembler.feed(frame)
            self._hear(place, working=message is not None)
            if message is None:
                continue
            reply = client.handle(message)
            place.used = place.used or isinstance(reply, Loaded)
            self._hear(place, working=False)
            # A client that does not read its answer is as silent as one that does not write.
            for part in to_frames(client.encoder(reply)) if reply is not None else ():
                yield part
                self._hear(place, working=False)
            message = reply = None
            reservation.end()

    # ---- places

    def _enter(self, context: grpc.ServicerContext) -> _Place:
        """A place for a new connection, if need be that of one which does nothing.

        Raises   RangeError
        """
        now = time.monotonic()
        place = _Place(context, now)
        leaving = None
        with self._lock:
            if len(self._places) >= self._limits.max_clients:
                idle = [one for one in self._places if self._makes_room(one, now)]
                if not idle:
                    raise RangeError(f"all {len(self._places)} places are taken by clients at work")
                leaving = min(idle, key=lambda one: (one.used, one.heard_at))
                self._places.remove(leaving)
            self._places.append(place)
        if leaving is not None:
            leaving.context.cancel()
        return place

    def _makes_room(self, place: _Place, now: float) -> bool:
        silent = now - place.heard_at >= self._limits.yield_s
        return not place.working and (silent or not place.used)

    def _leave(self, place: _Place) -> None:
        with self._lock:
            if place in self._places:
                self._places.remove(place)

    def _hear(self, place: _Place, *, working: bool) -> None:
        with self._lock:
            place.heard_at = time.monotonic()
            place.working = working

    def _watch(self) -> None:
        """Cut clients that have been silent for too long."""
        while not self._stopping.wait(min(self._limits.idle_s, self._limits.first_s) / 4):
            now = time.monotonic()
            with self._lock:
                silent = [place for place in self._places if self._is_over(place, now)]
            for place in silent:
                place.context.cancel()

    def _is_over(self, place: _Place, now: float) -> bool:
        first = not place.used and not place.working
        return now - place.heard_at >= (self._limits.first_s if first else self._limits.idle_s)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(
        self, serve: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
    ) -> None:
        self._method = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._method if details.method == METHOD else None
