"""Requests over shared memory: where their tensors lie, and what goes over the socket."""

import weakref
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from cloister.wire.codec import encode_head
from cloister.wire.messages import Answer, Apply, Expected, TensorSpec
from cloister.wire.shm.arena import Region
from cloister.wire.shm.packets import REQUEST_ID_OFFSET, pack_answer, pack_message


class SendBuffer(NamedTuple):
    """A region as a tensor that goes out, and the array over it if a caller writes to it."""

    reference: "weakref.ref[np.ndarray] | None"
    region: Region
    spec: TensorSpec


class Sent(NamedTuple):
    """A request under way: its regions, those of the answer, and the answer's only valid form.

    `answer` is None where the worker decides a size of the answer.
    """

    regions: tuple[Region, ...]
    rooms: tuple[Region, ...]
    expect: tuple[Expected, ...]
    answer: bytes | None


class PreparedRequest(NamedTuple):
    """A request that is sent again and again from the same place, and its answer.

    `packet` and `answer` are what goes over the socket, but for the request id.
    """

    target_id: int
    spec: TensorSpec
    expect: TensorSpec
    room: Region
    packet: bytes
    answer: bytes
    message_bytes: int
    answer_bytes: int

    def sent(self, request_id: int) -> Sent:
        """The request under way; its regions are not given back with it."""
        return Sent((), (self.room,), (self.expect,), with_request_id(self.answer, request_id))


class PreparedRequests(NamedTuple):
    """Requests that follow each other, and the bytes that cross with them in all."""

    requests: tuple[PreparedRequest, ...]
    bytes_sent: int
    bytes_received: int

    @classmethod
    def of(cls, requests: Sequence[PreparedRequest]) -> Self:
        """These requests."""
        sent = sum(len(one.packet) + one.message_bytes for one in requests)
        received = sum(len(one.answer) + one.answer_bytes for one in requests)
        return cls(tuple(requests), sent, received)


def make_exchange(
    target_id: int, place: Region, spec: TensorSpec, room: Region, expect: TensorSpec
) -> PreparedRequest:
    """The packets of a request with one tensor at `place` and its answer in `room`."""
    packet = pack_message(encode_head(Apply, (0, target_id), (spec,)), (place,), (room,))
    answer = pack_answer(encode_head(Answer, (0,), (expect,)))
    return PreparedRequest(
        target_id, spec, expect, room, packet, answer, spec.nbytes, expect.nbytes
    )


def with_request_id(packet: bytes, request_id: int) -> bytes:
    """A packet with its request id filled in."""
    end = REQUEST_ID_OFFSET + 8
    return packet[:REQUEST_ID_OFFSET] + request_id.to_bytes(8, "little") + packet[end:]
