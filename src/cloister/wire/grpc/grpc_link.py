"""A worker on another machine, reached by gRPC: one stream of frames in each direction.

Without a certificate the stream is neither encrypted nor authenticated. Blinded requests are
uniform, and the trusted side refuses wrong answers to checked ones, so a listener learns nothing
from them and cannot change a result. Layers a plan sends in the clear are as open on the network as
they are to the worker. Seeds of pads do need secrecy: a maker is reached by TLS, and its own
certificate is the only one that is trusted, whatever its address. Shares of pads need it too
(docs/protocols/padfactory.md).
"""

import threading
import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue

import grpc
import numpy as np

from cloister.base.tls_identity import WORKER_NAME
from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable, printable
from cloister.wire.codec import Encoded, Head, encode
from cloister.wire.grpc.frames import FRAME_BYTES, Assembler, to_frames
from cloister.wire.grpc.places import check_address
from cloister.wire.link import MessageLink
from cloister.wire.messages import (
    MAX_FAILURE_CHARS,
    Answer,
    Apply,
    Expected,
    Hello,
    LoadLinear,
    LoadSegment,
    MakePads,
    TensorSpec,
    Unchecked,
)
from cloister.wire.replies import named

METHOD = "/cloister.Worker/Connect"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_LOAD_TIMEOUT_S = 120.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", FRAME_BYTES + 4096),
    ("grpc.max_send_message_length", FRAME_BYTES + 4096),
    # A proxy of the environment must not be handed the traffic.
    ("grpc.enable_http_proxy", 0),
)


class RpcLink(MessageLink):
    """See WorkerLink. Connects at first use.

    timeout_s        for the connection
    load_timeout_s   for each linear map or segment
    certificate      the worker's own, in PEM, pinned; None: without encryption

    Raises   InputError when the address is not HOST:PORT
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        load_timeout_s: float = DEFAULT_LOAD_TIMEOUT_S,
        certificate: bytes | None = None,
    ) -> None:
        check_address(address)
        super().__init__(address, address=address)
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._certificate = certificate
        self._changed = threading.Condition()
        self._outbox: SimpleQueue[tuple[int, Encoded] | None] = SimpleQueue()
        self._begun: set[int] = set()
        self._channel: grpc.Channel | None = None
        self._call: grpc.Call | None = None
        self._lent: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()

    @property
    def encrypted(self) -> bool:
        """See WorkerLink."""
        return self._certificate is not None

    def connect(self) -> None:
        """Connect and greet, unless that is done."""
        self._check_open()
        if self._call is not None:
            return
        self._channel = self._open_channel()
        stream = self._channel.stream_stream(METHOD)
        self._replies.greet()
        self._call = stream(self._outgoing())
        threading.Thread(target=self._listen, args=(self._call,), daemon=True).start()
        self._send(encode(Hello()))
        self._wait_for_control(
            self._timeout_s, "it did not answer; start `cloister worker serve --listen` there"
        )

    def _open_channel(self) -> grpc.Channel:
        if self._certificate is None:
            return grpc.insecure_channel(self.name, options=CHANNEL_OPTIONS)
        # The one root that is trusted may not vouch for others, so it is the server's certificate.
        credentials = grpc.ssl_channel_credentials(self._certificate)
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", WORKER_NAME))
        return grpc.secure_channel(self.name, credentials, options=options)

    def load(self, message: LoadLinear | LoadSegment) -> None:
        """See WorkerLink."""
        self.connect()
        with self._changed:
            self._replies.load(message.target_id)
        self._send(encode(message))
        self._wait_for_control(
            self._load_timeout_s, f"target {message.target_id} was not loaded in time"
        )

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """See WorkerLink; private memory here."""
        array = super().send_buffer(spec)
        self._lent[array.ctypes.data] = array
        return array

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
    ) -> None:
        """See WorkerLink; returns before everything is sent."""
        self.connect()
        # Sending goes on in another thread, so only arrays that stay as they are go uncopied.
        owned = tuple(
            tensor if self._lent.pop(tensor.ctypes.data, None) is not None else tensor.copy()
            for tensor in tensors
        )
        self._request(request_id, encode(Apply(request_id, target_id, owned)), expect)

    def make_pads(self, message: MakePads) -> None:
        """See WorkerLink."""
        self.connect()
        self._request(message.request_id, encode(message), (message.answer,))

    def _request(self, request_id: int, encoded: Encoded, expect: tuple[Expected, ...]) -> None:
        with self._changed:
            self._replies.open(request_id, expect)
        self._send(encoded, request_id)

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_open()
                answer = self._taken(request_id)
                if answer is not None:
                    return answer
                self._wait(deadline, f"no answer within {timeout_s:g} s")

    def release(self, request_id: int) -> None:
        """See WorkerLink."""
        with self._changed:
            if self._replies.known(request_id):
                self._replies.release(request_id)

    def close(self) -> None:
        """See WorkerLink; the worker then drops what was loaded."""
        with self._changed:
            self._broken = self._broken or self._unavailable("the link is closed")
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            self._channel.close()

    # ---- the calling thread

    def _wait_for_control(self, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._check_open()
                if self._replies.control_done():
                    return
                self._wait(deadline, f"{what} ({timeout_s:g} s)")

    def _wait(self, deadline: float, what: str) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise WorkerTimeout(f"worker {self.name}: {what}")
        self._changed.wait(remaining)

    def _send(self, encoded: Encoded, request_id: int = 0) -> None:
        self._outbox.put((request_id, encoded))

    def _unavailable(self, why: str) -> WorkerUnavailable:
        return WorkerUnavailable(f"worker {self.name}: {why}")

    # ---- gRPC's threads

    def _outgoing(self) -> Iterator[bytes]:
        while (item := self._outbox.get()) is not None:
            request_id, encoded = item
            with self._changed:
                self._begun.add(request_id)
            for frame in to_frames(encoded):
                self._bytes_sent += len(frame)
                yield frame

    def _listen(self, call: grpc.Call) -> None:
        assembler = Assembler(self._admit)
        broken: ProtocolError
        try:
            for frame in call:
                self._bytes_received += len(frame)
                message = assembler.feed(frame)
                if message is not None:
                    with self._changed:
                        self._replies.deliver(message)
                        self._changed.notify_all()
            broken = self._unavailable("it ended the connection")
        except ProtocolError as error:
            broken = named(error, self.name)
            call.cancel()
        except grpc.RpcError as error:
            reason = _reason(error, encrypted=self.encrypted)
            broken = self._unavailable(printable(reason, most=MAX_FAILURE_CHARS))
        self._outbox.put(None)
        with self._changed:
            self._broken = self._broken or broken
            self._changed.notify_all()

    def _admit(self, head: Head) -> None:
        with self._changed:
            self._replies.admit(head)
            # Otherwise a worker that answers without reading would fill this side's memory.
            if head.kind is Answer and head.numbers[0] not in self._begun:
                raise ProtocolError(f"answers request {head.numbers[0]} before it was sent")
            if head.kind is Answer:
                self._begun.discard(head.numbers[0])


def _reason(error: grpc.RpcError, *, encrypted: bool) -> str:
    code = error.code()
    if code == grpc.StatusCode.UNAVAILABLE and encrypted:
        return (
            "cannot be reached, or shows another certificate than the given one; is `cloister "
            "worker serve --tls` running there?"
        )
    if code == grpc.StatusCode.UNAVAILABLE:
        return (
            "cannot be reached; is `cloister worker serve --listen` running there, without --tls?"
        )
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return f"has no room for this client or message ({error.details() or ''})"
    return f"ended the connection: {code.name} {error.details()}"
