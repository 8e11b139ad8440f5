"""A worker inside the trusted process, for tests and demonstrations.

Nothing is shared: every message passes through the wire format in both directions.
"""

from collections.abc import Callable

import numpy as np

from cloister.errors import ProtocolError, WorkerTimeout, WorkerUnavailable
from cloister.wire.codec import Encoded, decode, decode_head, encode
from cloister.wire.link import MessageLink
from cloister.wire.messages import (
    Apply,
    Expected,
    LoadLinear,
    LoadSegment,
    MakePads,
    Message,
    Unchecked,
)
from cloister.wire.replies import named

Handler = Callable[[Message], Message | None]


class InProcessLink(MessageLink):
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
        super().__init__(name)
        self._handler = handler
        self._encode_reply = encode

    @property
    def encrypted(self) -> bool:
        """See WorkerLink: nothing leaves the process."""
        return True

    def load(self, message: LoadLinear | LoadSegment) -> None:
        """See WorkerLink."""
        self._check_open()
        self._replies.load(message.target_id)
        self._call(message)
        self._check_open()
        if not self._replies.control_done():
            raise WorkerTimeout(f"worker {self.name}: target {message.target_id} was not loaded")

    def submit(
        self,
        request_id: int,
        target_id: int,
        tensors: tuple[np.ndarray, ...],
        expect: tuple[Expected, ...],
    ) -> None:
        """See WorkerLink; the handler runs before this returns."""
        self._check_open()
        self._replies.open(request_id, expect)
        self._call(Apply(request_id, target_id, tensors))

    def make_pads(self, message: MakePads) -> None:
        """See WorkerLink; the handler runs before this returns."""
        self._check_open()
        self._replies.open(message.request_id, (message.answer,))
        self._call(message)

    def receive(self, request_id: int, *, timeout_s: float) -> tuple[Unchecked[np.ndarray], ...]:
        """See WorkerLink; an answer that is not there yet never comes."""
        self._check_open()
        answer = self._taken(request_id)
        if answer is None:
            raise WorkerTimeout(f"worker {self.name}: no answer within {timeout_s:g} s")
        return answer

    def release(self, request_id: int) -> None:
        """See WorkerLink."""
        self._replies.release(request_id)

    def close(self) -> None:
        """See WorkerLink."""
        self._broken = WorkerUnavailable(f"worker {self.name}: the link is closed")

    def _call(self, message: Message) -> None:
        sent = encode(message).to_bytes()
        self._bytes_sent += len(sent)
        reply = self._handler(decode(sent))
        if reply is None:
            return
        received = self._encode_reply(reply).to_bytes()
        self._bytes_received += len(received)
        try:
            self._replies.admit(decode_head(received))
            self._replies.deliver(decode(received))
        except ProtocolError as error:
            # Raised where a real link would notice: when the answer is waited for.
            self._broken = named(error, self.name)
