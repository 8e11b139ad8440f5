"""Serves the trusted runtime that started this process, one connection, by shared memory."""

import mmap
import os
import socket
import sys
from collections.abc import Callable

import numpy as np

import cloister.base._native as native
from cloister.base.private_memory import map_pages
from cloister.errors import ProtocolError
from cloister.wire.codec import Encoded, encode
from cloister.wire.messages import Answer, Apply, Failure, MakePads, Message, TensorSpec
from cloister.wire.shm.arena import Region
from cloister.wire.shm.packets import (
    MAX_PACKET_BYTES,
    DropSegment,
    NewSegment,
    Placed,
    pack_answer,
    parse,
)

_BLOCK_BYTES = 512
"""What `st_blocks` counts."""


class _Memory:
    """The segments this process has mapped."""

    def __init__(self) -> None:
        self._segments: dict[int, mmap.mmap] = {}

    def add(self, segment: NewSegment, descriptors: list[int]) -> None:
        try:
            if len(descriptors) != 1 or os.fstat(descriptors[0]).st_size != segment.size:
                raise ProtocolError(f"segment {segment.index}: its memory did not come along")
            memory = mmap.mmap(descriptors[0], segment.size)
            if os.fstat(descriptors[0]).st_blocks * _BLOCK_BYTES >= segment.size:
                # Its pages are all in memory: they are mapped now, and not by a fault each.
                map_pages(memory)
            self._segments[segment.index] = memory
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def drop(self, index: int) -> None:
        self._segments.pop(index, None)

    def array(self, region: Region, spec: TensorSpec) -> np.ndarray:
        memory = self._segments.get(region.segment)
        if memory is None or region.offset + spec.nbytes > len(memory) or spec.nbytes > region.size:
            raise ProtocolError(f"{spec} does not lie inside {region}")
        return np.ndarray(spec.shape, spec.dtype, buffer=memory, offset=region.offset)


def serve_descriptor(
    descriptor: int,
    handler: Callable[[Message], Message | None],
    *,
    encoder: Callable[[Message], Encoded] = encode,
    poll_us: int = 0,
) -> None:
    """Answer messages until the other end of the socket is closed.

    poll_us   microseconds of busy polling for the next message before this process blocks: the
              sender then need not wake it, which costs more than all else in an exchange

    Raises   ProtocolError when the trusted side breaks the protocol
    """
    with socket.socket(fileno=descriptor) as channel:
        memory = _Memory()
        while True:
            if poll_us:
                native.busy_poll(descriptor, poll_us)
            packet, descriptors, _, _ = socket.recv_fds(channel, MAX_PACKET_BYTES + 1, 4)
            if not packet:
                return
            match parse(packet):
                case NewSegment() as segment:
                    memory.add(segment, descriptors)
                case DropSegment(index):
                    memory.drop(index)
                case Placed() as placed:
                    reply = _answer(placed, memory, handler, encoder)
                    if reply is not None and not _send(channel, reply):
                        return


def _answer(
    placed: Placed,
    memory: _Memory,
    handler: Callable[[Message], Message | None],
    encoder: Callable[[Message], Encoded],
) -> bytes | None:
    tensors = tuple(
        memory.array(place, spec)
        for place, spec in zip(placed.places, placed.head.specs, strict=True)
    )
    message = placed.head.message(tensors)
    reply = handler(message)
    if reply is None:
        return None
    if isinstance(reply, Answer) and not _fits(reply, placed.rooms):
        request_id = message.request_id if isinstance(message, Apply | MakePads) else 0
        reply = Failure(request_id, "the answer takes more memory than the request gives it")
    encoded = encoder(reply)
    for data, room in zip(encoded.payload, placed.rooms, strict=False):
        # A lying encoder may have more or less than the room takes; an honest one fits.
        size = min(len(data), room.size)
        target = memory.array(room, TensorSpec(np.dtype(np.uint8), (size,)))
        target[:] = np.frombuffer(data, np.uint8, size)
    return pack_answer(encoded.head)


def _fits(reply: Answer, rooms: tuple[Region, ...]) -> bool:
    if len(reply.tensors) != len(rooms):
        return False
    return all(
        tensor.nbytes <= room.size for tensor, room in zip(reply.tensors, rooms, strict=True)
    )


def _send(channel: socket.socket, reply: bytes) -> bool:
    try:
        channel.send(reply)
    except OSError as error:
        sys.stderr.write(f"worker: the trusted side has gone: {error.strerror}\n")
        return False
    return True
