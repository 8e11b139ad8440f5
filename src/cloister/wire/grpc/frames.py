"""Messages of any size as a stream of small frames, and back.

A frame holds at most 1 MiB of one message; a message's head is whole in its first frame.
"""

from collections.abc import Callable, Iterator

import numpy as np

from cloister.errors import ProtocolError
from cloister.wire.codec import (
    DEFAULT_MAX_PAYLOAD_BYTES,
    Encoded,
    Head,
    as_bytes,
    decode_head,
)
from cloister.wire.messages import Message

FRAME_BYTES = 1 << 20


def to_frames(encoded: Encoded) -> Iterator[bytes]:
    """Cut a message into frames."""
    pending: list[bytes | memoryview] = [encoded.head]
    size = len(encoded.head)
    for data in encoded.payload:
        position = 0
        while position < len(data):
            piece = data[position : position + FRAME_BYTES - size]
            pending.append(piece)
            position += len(piece)
            size += len(piece)
            if size == FRAME_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
    if pending:
        yield b"".join(pending)


class Assembler:
    """Puts frames together again.

    admit   called with every head before its tensors get memory; raises to refuse the message
    """

    def __init__(
        self,
        admit: Callable[[Head], None],
        *,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    ) -> None:
        self._admit = admit
        self._max_payload_bytes = max_payload_bytes
        self._head: Head | None = None
        self._tensors: tuple[np.ndarray, ...] = ()
        self._open: list[memoryview] = []

    def feed(self, frame: bytes) -> Message | None:
        """Take the next frame; the message, when this completes one.

        Raises   ProtocolError; the stream is then lost
        """
        if len(frame) > FRAME_BYTES:
            raise ProtocolError(f"frame of {len(frame)} B exceeds {FRAME_BYTES} B")
        rest = memoryview(frame)
        if self._head is None:
            head = decode_head(rest, max_payload_bytes=self._max_payload_bytes)
            self._admit(head)
            self._head = head
            self._tensors = tuple(np.empty(spec.shape, spec.dtype) for spec in head.specs)
            self._open = [as_bytes(tensor) for tensor in self._tensors if tensor.nbytes]
            rest = rest[head.nbytes :]
        elif not frame:
            raise ProtocolError("frame is empty in the middle of a message")
        while rest and self._open:
            target = self._open[0]
            size = min(len(rest), len(target))
            target[:size] = rest[:size]
            rest = rest[size:]
            if size == len(target):
                del self._open[0]
            else:
                self._open[0] = target[size:]
        if rest:
            raise ProtocolError(f"{len(rest)} B behind the end of a message")
        if self._open:
            return None
        message = self._head.message(self._tensors)
        self._head, self._tensors = None, ()
        return message
