"""Where every buffer lies: in the weights, the inputs, the outputs, or the one static arena."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloister.bundle.manifest import ALIGNMENT
from cloister.codegen.lowering import Layer
from cloister.codegen.views import Buffer


@dataclass(frozen=True)
class BufferPlaces:
    """Offsets in bytes of the buffers that lie in the arena and in the weights."""

    arena: Mapping[Buffer, int]
    arena_bytes: int
    weights: Mapping[Buffer, int]
    weights_bytes: int


def place(
    layers: Sequence[Layer], weights: Mapping[Buffer, np.ndarray], outside: Sequence[Buffer]
) -> BufferPlaces:
    """Places of all buffers but those of the caller: two that live at once do not overlap."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for at, layer in enumerate(layers):
        for view in (*layer.reads.values(), *layer.writes.values()):
            lives[view.buffer] = (lives.get(view.buffer, (at, at))[0], at)
    packed = [buffer for buffer in lives if buffer in weights]
    taken = {*packed, *outside}
    arena, arena_bytes = _arena({b: life for b, life in lives.items() if b not in taken})
    offsets, at = {}, 0
    for buffer in packed:
        offsets[buffer] = at
        at += aligned(buffer.nbytes)
    return BufferPlaces(arena, arena_bytes, offsets, at)


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _arena(lives: Mapping[Buffer, tuple[int, int]]) -> tuple[dict[Buffer, int], int]:
    """The largest buffers first, each at the lowest place that is free while it lives."""
    places: dict[Buffer, int] = {}
    total = 0
    # Sorting is stable: buffers of one size stay in the order of their layers.
    for buffer in sorted(lives, key=lambda one: -one.nbytes):
        first, last = lives[buffer]
        busy = sorted(
            (at, at + aligned(other.nbytes))
            for other, at in places.items()
            if lives[other][0] <= last and first <= lives[other][1]
        )
        start = 0
        for begin, end in busy:
            if start + buffer.nbytes <= begin:
                break
            start = max(start, end)
        places[buffer] = start
        total = max(total, start + aligned(buffer.nbytes))
    return places, total
