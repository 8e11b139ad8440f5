"""Control packets of a shared-memory link: heads and places, never tensors.

One packet per datagram of a SOCK_SEQPACKET socket pair, first byte its type. From the trusted side:

    SEGMENT   index u32, size u64; the segment's descriptor travels along
    DROP      index u32
    MESSAGE   head, then one place (segment u32, offset u64) per tensor of the head,
              room count u16, rooms (segment u32, offset u64, size u64) for the answer

From the worker only MESSAGE comes, and it is a bare head: the request names the place of its
answer, so a worker cannot name one.
"""

import struct
from dataclasses import dataclass

from cloister.errors import ProtocolError
from cloister.wire.codec import MAX_HEAD_BYTES, PRELUDE, Head, decode_head
from cloister.wire.shm.arena import Region

SEGMENT, DROP, MESSAGE = 0, 1, 2
MAX_PACKET_BYTES = 4 * MAX_HEAD_BYTES
# Where an Apply's and an Answer's packet have their request id: u64, little endian.
REQUEST_ID_OFFSET = 1 + PRELUDE.size

_SEGMENT = struct.Struct("<BIQ")
_DROP = struct.Struct("<BI")
_REGION = struct.Struct("<IQQ")
_COUNT = struct.Struct("<H")


@dataclass(frozen=True)
class NewSegment:
    """A segment to map."""

    index: int
    size: int


@dataclass(frozen=True)
class DropSegment:
    """A segment that is not used any more."""

    index: int


@dataclass(frozen=True)
class Placed:
    """A message's head with the places of its tensors and the rooms for its answer."""

    head: Head
    places: tuple[Region, ...]
    rooms: tuple[Region, ...]


def pack_segment(index: int, size: int) -> bytes:
    """A SEGMENT packet."""
    return _SEGMENT.pack(SEGMENT, index, size)


def pack_drop(index: int) -> bytes:
    """A DROP packet."""
    return _DROP.pack(DROP, index)


def pack_message(
    head: bytes, places: tuple[Region, ...] = (), rooms: tuple[Region, ...] = ()
) -> bytes:
    """A MESSAGE packet of the trusted side."""
    regions = (_REGION.pack(region.segment, region.offset, region.size) for region in places)
    free = (_REGION.pack(region.segment, region.offset, region.size) for region in rooms)
    return b"".join((bytes([MESSAGE]), head, *regions, _COUNT.pack(len(rooms)), *free))


def pack_answer(head: bytes) -> bytes:
    """A MESSAGE packet of the worker."""
    return bytes([MESSAGE]) + head


def parse_answer(packet: bytes) -> Head:
    """Decode what a worker sent.

    Raises   ProtocolError
    """
    if packet[:1] != bytes([MESSAGE]):
        raise ProtocolError("packet: a worker sends messages only")
    view = memoryview(packet)[1:]
    head = decode_head(view)
    if head.nbytes != len(view):
        raise ProtocolError(f"packet: {len(view) - head.nbytes} B behind the head")
    return head


def parse(packet: bytes) -> NewSegment | DropSegment | Placed:
    """Decode what the trusted side sent.

    Raises   ProtocolError
    """
    try:
        kind = packet[0]
        if kind == SEGMENT:
            return NewSegment(*_SEGMENT.unpack(packet)[1:])
        if kind == DROP:
            return DropSegment(*_DROP.unpack(packet)[1:])
        if kind == MESSAGE:
            return _parse_message(memoryview(packet)[1:])
    except (struct.error, IndexError) as error:
        raise ProtocolError("packet: truncated") from error
    raise ProtocolError(f"packet: type {packet[0]} is unknown")


def _parse_message(view: memoryview) -> Placed:
    head = decode_head(view)
    position = head.nbytes
    places = _regions(view, position, len(head.specs))
    position += len(places) * _REGION.size
    (count,) = _COUNT.unpack_from(view, position)
    position += _COUNT.size
    rooms = _regions(view, position, count)
    if position + len(rooms) * _REGION.size != len(view):
        raise ProtocolError("packet: trailing bytes")
    return Placed(head, places, rooms)


def _regions(view: memoryview, position: int, count: int) -> tuple[Region, ...]:
    return tuple(
        Region(*_REGION.unpack_from(view, position + i * _REGION.size)) for i in range(count)
    )
