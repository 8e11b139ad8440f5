"""Shared memory of one local worker: sealed segments, and regions handed out from them.

Only the trusted side allocates. The worker maps the same segments and may read and write all of
them at any time, so nothing in them is ever trusted or secret. One limit matters: because of the
seal the worker cannot shrink a segment, which would crash a process that reads beyond the new end.
"""

import fcntl
import mmap
import os
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cloister.base.private_memory import advise_huge, populate
from cloister.errors import RangeError
from cloister.wire.messages import TensorSpec

PAGE = 4096
SEGMENT_BYTES = 256 << 20
DEFAULT_MAX_ARENA_BYTES = 32 << 30
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Region(NamedTuple):
    """A run of bytes in a segment."""

    segment: int
    offset: int
    size: int


@dataclass
class _Segment:
    memory: mmap.mmap
    size: int
    free: list[tuple[int, int]] = field(default_factory=list)


class Arena:
    """Allocates regions, first fit at the lowest address, so that warm pages are used again.

    on_new   is given the index, size and file descriptor of every new segment; it must not keep
             the descriptor
    """

    def __init__(
        self,
        on_new: Callable[[int, int, int], None],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        max_bytes: int = DEFAULT_MAX_ARENA_BYTES,
    ) -> None:
        self._on_new = on_new
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._segments: dict[int, _Segment] = {}
        self._next = 0

    @property
    def reserved_bytes(self) -> int:
        """Address space of all segments; pages that were never touched take no memory."""
        return sum(segment.size for segment in self._segments.values())

    def allocate(self, nbytes: int) -> Region:
        """A region of at least `nbytes`, page-aligned.

        Raises   RangeError when the arena's limit is reached
        """
        size = _pages(nbytes)
        found = self._first_fit(size)
        if found is not None:
            return found
        index = self._new_segment(max(size, self._segment_bytes))
        segment = self._segments[index]
        segment.free = [(size, segment.size - size)] if segment.size > size else []
        return Region(index, 0, size)

    def allocate_populated(self, nbytes: int) -> Region:
        """A region whose pages are in memory: no write to it causes a page fault.

        Raises   RangeError when the arena's limit is reached
        """
        size = _pages(nbytes)
        found = self._first_fit(size)
        if found is None:
            return self.allocate_alone(nbytes)
        populate(self._segments[found.segment].memory, found.offset, size)
        return found

    def _first_fit(self, size: int) -> Region | None:
        for index, segment in self._segments.items():
            for position, (offset, room) in enumerate(segment.free):
                if room >= size:
                    if room == size:
                        del segment.free[position]
                    else:
                        segment.free[position] = (offset + size, room - size)
                    return Region(index, offset, size)
        return None

    def allocate_alone(self, nbytes: int) -> Region:
        """A region with a segment to itself, populated before the worker hears of it.

        Raises   RangeError when the arena's limit is reached
        """
        size = _pages(nbytes)
        return Region(self._new_segment(size, populated=True), 0, size)

    def free(self, region: Region) -> None:
        """Give a region back; it joins its free neighbours."""
        segment = self._segments.get(region.segment)
        if segment is None:
            return
        insort(segment.free, (region.offset, region.size))
        merged: list[tuple[int, int]] = []
        for offset, size in segment.free:
            if merged and merged[-1][0] + merged[-1][1] == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        segment.free = merged

    def drop(self, index: int) -> None:
        """Forget a segment; its memory goes with the last array that lies in it."""
        self._segments.pop(index, None)

    def array(self, region: Region, spec: TensorSpec) -> np.ndarray:
        """The region's start as an array."""
        memory = self._segments[region.segment].memory
        return np.ndarray(spec.shape, spec.dtype, buffer=memory, offset=region.offset)

    def close(self) -> None:
        """Forget all segments."""
        self._segments.clear()

    def _new_segment(self, size: int, *, populated: bool = False) -> int:
        if self.reserved_bytes + size > self._max_bytes:
            raise RangeError(
                f"shared memory of {self.reserved_bytes + size} B exceeds the limit of "
                f"{self._max_bytes} B; use a smaller batch"
            )
        descriptor = os.memfd_create("cloister", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(descriptor, size)
            advise_huge(memory, 0, size)
            if populated:
                populate(memory, 0, size)
            index, self._next = self._next, self._next + 1
            self._segments[index] = _Segment(memory, size)
            self._on_new(index, size, descriptor)
        finally:
            os.close(descriptor)
        return index


def _pages(nbytes: int) -> int:
    return max(PAGE, -(-nbytes // PAGE) * PAGE)
