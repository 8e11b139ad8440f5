"""Serves trusted runtimes on other machines by gRPC: one stream, one engine per client.

What a client loaded belongs to its stream and goes with it, when the client says goodbye, is cut
off, or stays silent for too long.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from cloister.errors import InputError, ProtocolError
from cloister.wire.codec import Encoded, Head, encode
from cloister.wire.frames import Assembler, to_frames
from cloister.wire.messages import Message
from cloister.wire.rpc import CHANNEL_OPTIONS, METHOD, check_address

DEFAULT_MAX_CLIENTS = 8
DEFAULT_MAX_MESSAGE_BYTES = 1 << 30
DEFAULT_IDLE_S = 3600.0
_STOP_GRACE_S = 1.0


class Client:
    """What serves one connection: replies to messages, and cleans up."""

    def __init__(
        self,
        handle: Callable[[Message], Message | None],
        *,
        close: Callable[[], None],
        encoder: Callable[[Message], Encoded] = encode,
    ) -> None:
        self.handle = handle
        self.close = close
        self.encoder = encoder


@dataclass(frozen=True)
class Limits:
    """Bounds of a server."""

    max_clients: int = DEFAULT_MAX_CLIENTS
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    idle_s: float = DEFAULT_IDLE_S


class Server:
    """A running server; `close` stops it.

    new_client   makes the handler of each new connection

    Raises   InputError when the address is malformed or cannot be used
    """

    def __init__(
        self,
        listen: str,
        *,
        new_client: Callable[[], Client],
        limits: Limits | None = None,
    ) -> None:
        host, _ = check_address(listen)
        self._limits = limits or Limits()
        self._new_client = new_client
        self._silent_since: dict[grpc.ServicerContext, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = grpc.server(
            ThreadPoolExecutor(self._limits.max_clients, thread_name_prefix="client"),
            handlers=[_Handler(self._serve)],
            # Two servers on one port would share its clients by chance.
            options=[*CHANNEL_OPTIONS, ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=self._limits.max_clients,
        )
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {listen}: address in use or not of this machine; choose another"
            ) from error
        self.address = f"{host}:{port}"
        self._server.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self) -> None:
        """Block until the server is closed."""
        self._server.wait_for_termination()

    def close(self) -> None:
        """Cut all connections and stop."""
        self._stopping.set()
        self._server.stop(_STOP_GRACE_S).wait()

    def _serve(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        client = self._new_client()
        self._heard(context)
        assembler = Assembler(_admit, max_payload_bytes=self._limits.max_message_bytes)
        try:
            for frame in frames:
                message = assembler.feed(frame)
                self._heard(context)
                if message is None:
                    continue
                reply = client.handle(message)
                if reply is not None:
                    yield from to_frames(client.encoder(reply))
                self._heard(context)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        finally:
            with self._lock:
                self._silent_since.pop(context, None)
            client.close()

    def _heard(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._silent_since[context] = time.monotonic()

    def _watch(self) -> None:
        """Cut clients that have been silent for too long."""
        while not self._stopping.wait(self._limits.idle_s / 4):
            limit = time.monotonic() - self._limits.idle_s
            with self._lock:
                silent = [context for context, at in self._silent_since.items() if at < limit]
            for context in silent:
                context.cancel()


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(
        self, serve: Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]
    ) -> None:
        self._method = grpc.stream_stream_rpc_method_handler(serve)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._method if details.method == METHOD else None


def _admit(head: Head) -> None:
    """The size is bounded by the assembler; what a message may say, by the engine."""
