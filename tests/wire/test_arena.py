import contextlib
import os
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.errors import ProtocolError, RangeError
from cloister.wire.codec import encode
from cloister.wire.messages import Loaded, TensorSpec
from cloister.wire.shm.arena import PAGE, Arena, Region
from cloister.wire.shm.packets import (
    DropSegment,
    NewSegment,
    Placed,
    pack_answer,
    pack_drop,
    pack_message,
    pack_segment,
    parse,
    parse_answer,
)


def arena(**kwargs):
    return Arena(lambda index, size, descriptor: None, segment_bytes=8 * PAGE, **kwargs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5 * PAGE), st.integers(0, 7)), max_size=40))
def test_regions_never_overlap_and_all_come_back(steps):
    shared = arena()
    held = []
    for size, victim in steps:
        held.append(shared.allocate(size))
        assert held[-1].size >= size
        if len(held) > victim:
            shared.free(held.pop(victim))
        for i, a in enumerate(held):
            for b in held[:i]:
                apart = a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
                assert a.segment != b.segment or apart
    reserved = shared.reserved_bytes
    for region in held:
        shared.free(region)
    # Everything merged again: the first segment can be had as a whole.
    if reserved:
        assert shared.allocate(8 * PAGE) == Region(0, 0, 8 * PAGE)
        assert shared.reserved_bytes == reserved


def test_warm_memory_is_used_again():
    shared = arena()
    first = shared.allocate(100)
    shared.free(first)
    assert shared.allocate(200) == first


def test_large_regions_get_a_segment_of_their_own_and_a_limit_holds():
    shared = arena(max_bytes=32 * PAGE)
    assert shared.allocate(20 * PAGE).offset == 0
    with pytest.raises(RangeError, match="smaller batch"):
        shared.allocate(20 * PAGE)
    shared.drop(0)
    alone = shared.allocate_alone(20 * PAGE)
    assert shared.allocate(PAGE).segment != alone.segment


def test_segments_cannot_be_shrunk_or_grown():
    seen = []

    def on_new(index, size, descriptor):
        for other in (0, size // 2, 2 * size):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, other)
        seen.append((index, size))

    shared = Arena(on_new, segment_bytes=4 * PAGE)
    array = shared.array(shared.allocate(8), TensorSpec(np.dtype(np.uint32), (2,)))
    array[:] = 7
    assert seen == [(0, 4 * PAGE)]


def test_arrays_outlive_the_arena():
    shared = arena()
    array = shared.array(shared.allocate(8), TensorSpec(np.dtype(np.uint32), (2,)))
    shared.close()
    array[:] = 3
    assert array.sum() == 6


def test_packets_round_trip():
    head = encode(Loaded(4)).head
    places, rooms = (), (Region(1, 4096, 8192), Region(0, 0, 4096))
    assert parse(pack_segment(3, 1 << 40)) == NewSegment(3, 1 << 40)
    assert parse(pack_drop(3)) == DropSegment(3)
    placed = parse(pack_message(head, places, rooms))
    assert isinstance(placed, Placed)
    assert (placed.places, placed.rooms) == (places, rooms)
    assert parse_answer(pack_answer(head)).kind is Loaded


@given(st.binary(max_size=120), st.booleans())
def test_random_packets_are_refused(packet, prefixed):
    if prefixed:
        packet = b"\2" + encode(Loaded(4)).head + packet
    for parser in (parse, parse_answer):
        with contextlib.suppress(ProtocolError):
            parser(packet)


def test_populated_regions_are_in_memory_and_use_what_is_free():
    nbytes = 4000 * PAGE
    shared = arena()
    region = shared.allocate_populated(nbytes)
    assert shared.reserved_bytes == nbytes
    spec = TensorSpec(np.dtype(np.uint8), (nbytes,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    shared.array(region, spec).fill(1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100
    shared.free(region)
    again = shared.allocate_populated(nbytes // 2)
    assert (again.segment, again.offset) == (region.segment, region.offset)
    assert shared.reserved_bytes == nbytes
