"""Workers that lie, for tests of the trusted side.

Lies about values produce well-formed answers with wrong numbers: the wire cannot see them, a
check must. Lies about form break the protocol, and the wire must see them.
"""

import math
import os
import struct
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TypeGuard

import numpy as np

from cloister.wire.codec import PRELUDE, Encoded, as_bytes, encode, encode_head
from cloister.wire.messages import Answer, Apply, MakePads, Message, TensorSpec
from cloister.worker.engine import Engine

_EXIT_STATUS = 9
_PADS = -1
"""In the place of a target id: blocks of pads."""
_TENSOR = struct.Struct("<BBHQ")


class Lie(StrEnum):
    """The ways in which a worker does not answer truthfully."""

    FLIP_ONE = "flip-one"  # one element is off by one
    SCALE = "scale"  # everything times three
    SWAP_CHANNELS = "swap-channels"  # the first two output channels
    SHIFT_31 = "shift-31"  # one element plus 2^31
    SHIFT_32 = "shift-32"  # everything plus 2^32, as int64: equal modulo 2^32, wrong type
    ZERO_TILE = "zero-tile"  # a corner of the image is zero
    GARBAGE = "garbage"  # every word is the bit pattern of a NaN
    WRONG_DTYPE = "wrong-dtype"
    WRONG_SHAPE = "wrong-shape"
    TOO_FEW_BYTES = "too-few-bytes"
    TOO_MANY_BYTES = "too-many-bytes"
    HUGE = "huge"  # a head that states 2 GiB
    STALE_CONTENT = "stale-content"  # the previous answer of its kind, if any, under the new id
    STALE_ID = "stale-id"  # the answer under an id that was answered before
    HANG = "hang"
    DIE = "die"  # in the middle of the reply


VALUE_LIES = frozenset(
    {
        Lie.FLIP_ONE,
        Lie.SCALE,
        Lie.SWAP_CHANNELS,
        Lie.SHIFT_31,
        Lie.ZERO_TILE,
        Lie.GARBAGE,
        Lie.STALE_CONTENT,
    }
)


def _asks(message: Message) -> TypeGuard[Apply | MakePads]:
    return isinstance(message, Apply | MakePads)


def _kind(message: Apply | MakePads) -> int:
    """What two requests have in common whose answers are of one kind."""
    return message.target_id if isinstance(message, Apply) else _PADS


class ByzantineEngine:
    """An engine that serves honestly at first and then lies.

    after   how many answers are honest
    when    restricts the lie to requests it returns True for

    Used with `encode`, which tells the lies about bytes, in place of the codec's.
    """

    def __init__(
        self,
        engine: Engine,
        lie: Lie,
        *,
        after: int = 0,
        when: Callable[[Apply | MakePads], bool] | None = None,
    ) -> None:
        self._engine = engine
        self._lie = lie
        self._after = after
        self._when = when or (lambda _: True)
        self._answers = 0
        self._previous: dict[int, tuple[np.ndarray, ...]] = {}
        self._lying = False

    def handle(self, message: Message) -> Message | None:
        """The engine's reply, or a lie."""
        self._lying = False
        reply = self._engine.handle(message)
        if not _asks(message) or not isinstance(reply, Answer):
            return reply
        self._answers += 1
        self._lying = self._answers > self._after and self._when(message)
        sent = self._tell(message, reply) if self._lying else reply
        self._previous[_kind(message)] = tuple(tensor.copy() for tensor in reply.tensors)
        return sent

    def encode(self, message: Message) -> Encoded:
        """The bytes of a reply; where the lie is about bytes, not those of an honest worker."""
        encoded = encode(message)
        if not (self._lying and isinstance(message, Answer)):
            return encoded
        if self._lie is Lie.TOO_FEW_BYTES:
            return _resized(encoded, -4)
        if self._lie is Lie.TOO_MANY_BYTES:
            return _resized(encoded, 4)
        if self._lie is Lie.HUGE:
            return Encoded(_huge(message), encoded.payload)
        if self._lie is Lie.DIE:
            return Encoded(encoded.head, _half_and_exit(encoded))
        return encoded

    def _tell(self, message: Apply | MakePads, reply: Answer) -> Message | None:
        if self._lie is Lie.HANG:
            return None
        if self._lie is Lie.STALE_ID:
            return Answer(max(message.request_id - 1, 0), reply.tensors)
        if self._lie is Lie.STALE_CONTENT:
            old = self._previous.get(_kind(message), reply.tensors)
            same = [a.shape == b.shape for a, b in zip(old, reply.tensors, strict=True)]
            return Answer(message.request_id, old if all(same) else reply.tensors)
        return Answer(message.request_id, tuple(twist(t, self._lie) for t in reply.tensors))


def twist(tensor: np.ndarray, lie: Lie) -> np.ndarray:
    """A truthful tensor (n, ..., c) as a lie about values, type or shape; others unchanged."""
    if lie is Lie.SHIFT_32:
        return tensor.astype(np.int64) + (1 << 32)
    if lie is Lie.WRONG_DTYPE:
        return tensor.astype(np.int32 if tensor.dtype.kind == "f" else np.float32)
    if lie is Lie.WRONG_SHAPE:
        return np.moveaxis(tensor, -1, 1)[..., None].copy()
    changed = tensor.copy()
    flat = changed.reshape(-1)
    if not flat.size:
        return changed
    middle = slice(flat.size // 2, flat.size // 2 + 1)
    if lie is Lie.FLIP_ONE:
        flat[middle] += 1
    elif lie is Lie.SCALE:
        changed *= 3
    elif lie is Lie.SWAP_CHANNELS and changed.shape[-1] > 1:
        changed[..., [0, 1]] = changed[..., [1, 0]]
    elif lie is Lie.SHIFT_31:
        flat[middle] += changed.dtype.type(1 << 31)
    elif lie is Lie.ZERO_TILE:
        changed[(slice(None), *(slice(0, 4) for _ in changed.shape[1:-1]))] = 0
    elif lie is Lie.GARBAGE:
        words = as_bytes(changed)
        words[: len(words) // 4 * 4] = struct.pack("<I", 0x7FC00000) * (len(words) // 4)
    return changed


def _resized(encoded: Encoded, difference: int) -> Encoded:
    """The first tensor with some bytes less or more than its shape takes."""
    data = b"".join(encoded.payload)
    data = data[:difference] if difference < 0 else data + bytes(difference)
    magic, version, kind, tensors, length, payload = PRELUDE.unpack_from(encoded.head)
    head = bytearray(encoded.head)
    PRELUDE.pack_into(head, 0, magic, version, kind, tensors, length, payload + difference)
    position = PRELUDE.size + struct.calcsize("<Q")
    code, rank, zero, nbytes = _TENSOR.unpack_from(head, position)
    _TENSOR.pack_into(head, position, code, rank, zero, nbytes + difference)
    return Encoded(bytes(head), (memoryview(data),))


def _huge(message: Answer) -> bytes:
    """A head whose first tensor has so many rows that it takes 2 GiB."""
    first, *others = (TensorSpec.of(tensor) for tensor in message.tensors)
    row = TensorSpec(first.dtype, first.shape[1:])
    huge = TensorSpec(first.dtype, (2**31 // max(row.nbytes, 1), *row.shape))
    return encode_head(Answer, (message.request_id,), (huge, *others))


def _half_and_exit(encoded: Encoded) -> Iterator[memoryview]:
    data = b"".join(encoded.payload)
    yield memoryview(data)[: math.ceil(len(data) / 2)]
    os._exit(_EXIT_STATUS)
