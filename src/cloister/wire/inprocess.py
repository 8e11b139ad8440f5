"""A worker inside the trusted process, for tests and demonstrations.

Nothing is shared: every message passes through the wire format in both directions.
"""

from collections.abc import Callable

import numpy as np

from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.ring.linear import LinearMap
from cloister.wire.codec import Encoded, decode, decode_head, encode
from cloister.wire.messages import Apply, LoadLinear, LoadSegment, Message, TensorSpec, Unchecked
from cloister.wire.replies import ReplyBook, named

Handler = Callable[[Message], Message | None]


class InProcessLink:
    """Calls a handler at once; a handler that returns None does not answer.

    encode   makes the worker's bytes; a lying worker brings its own
    """

    def __init__(
        self,
        handler: Handler,
        *,
        name: str = "in-process",
        encode: Callable[[Message], Encoded] = encode,
    ) -> None:
        self.name = name
        self.address: str | None = None
        self.bytes_sent = 0
        self.bytes_received = 0
        self._handler = handler
        self._encode_reply = encode
        self._book = ReplyBook(name)
        self._closed = False
        self._broken: ProtocolError | None = None

    def load_linear(self, target_id: int, linear: LinearMap) -> None:
        """See WorkerLink."""
        self._load(target_id, LoadLinear(target_id, linear))

    def load_segment(self, target_id: int, model: bytes) -> None:
        """See WorkerLink."""
        self._load(target_id, LoadSegment(target_id, model))

    def send_buffer(self, spec: TensorSpec) -> np.ndarray:
        """See WorkerLink; private memory here."""
        return np.empty(spec.shape, spec.dtype)

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[TensorSpec, ...],
    ) -> None:
        """See WorkerLink; the handler runs before this returns."""
        self._check_open()
        self._book.open(request_id, expect)
        self._exchange(Apply(request_id, target_id, tensors))

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink; an answer that is not there yet never comes."""
        self._check_open()
        tensors = self._book.take(request_id)
        if tensors is None:
            raise WorkerTimeout(f"worker {self.name}: no answer within {timeout_s:g} s")
        return tuple(Unchecked(tensor) for tensor in tensors)

    def release(self, request_id: int) -> None:
        """See WorkerLink."""
        self._book.release(request_id)

    def close(self) -> None:
        """See WorkerLink."""
        self._closed = True

    def _load(self, target_id: int, message: LoadLinear | LoadSegment) -> None:
        self._check_open()
        self._book.load(target_id)
        self._exchange(message)
        self._check_open()
        if not self._book.control_done():
            raise WorkerTimeout(f"worker {self.name}: target {target_id} was not loaded")

    def _exchange(self, message: Message) -> None:
        sent = encode(message).to_bytes()
        self.bytes_sent += len(sent)
        reply = self._handler(decode(sent))
        if reply is None:
            return
        received = self._encode_reply(reply).to_bytes()
        self.bytes_received += len(received)
        try:
            self._book.admit(decode_head(received))
            self._book.deliver(decode(received))
        except ProtocolError as error:
            # Raised where a real link would notice: when the answer is waited for.
            self._broken = named(error, self.name)

    def _check_open(self) -> None:
        if self._closed:
            raise WorkerUnavailable(f"worker {self.name}: the link is closed")
        if self._broken is not None:
            raise self._broken
