"""Where the terms `A r` of a plan's blinded nodes lie in the one array of a pad set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import UInt32

from cloister.plan.plan import Plan

ALIGNED_WORDS = 16
"""Every node begins at a multiple of it: a cache line, and whole blocks of a keystream."""
_BLOCK_BYTES = 256 << 20


@dataclass(frozen=True)
class PadLayout:
    """Shape and first word of every blinded node's terms, by node index; `words` of a pad set.

    No node has the words between one node's end and the next one's beginning: they are 0.
    """

    shapes: Mapping[int, tuple[int, ...]]
    offsets: Mapping[int, int]
    words: int

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The layout of a plan's pad sets."""
        nodes = {i: plan.linear_nodes[i].linear.geometry for i in plan.hidden_nodes}
        return cls.of_shapes({i: geometry.out_shape for i, geometry in nodes.items()})

    @classmethod
    def of_shapes(cls, shapes: Mapping[int, tuple[int, ...]]) -> Self:
        """The layout of nodes whose terms have these shapes, by node index."""
        ordered = {index: shapes[index] for index in sorted(shapes)}
        offsets, words = {}, 0
        for index, shape in ordered.items():
            offsets[index] = words
            words += -(-math.prod(shape) // ALIGNED_WORDS) * ALIGNED_WORDS
        return cls(ordered, offsets, words)

    def block_rows(self, *, most: int) -> int:
        """How many pad sets are made together: 256 MiB of terms, one at least, `most` at most."""
        row_bytes = max(self.words, 1) * np.dtype(np.uint32).itemsize
        return min(max(_BLOCK_BYTES // row_bytes, 1), most)

    def views(self, terms: UInt32[np.ndarray, "*rows words"]) -> dict[int, np.ndarray]:
        """The terms of every node by node index, in the array of one pad set or of several."""
        found = {}
        for index, shape in self.shapes.items():
            first = self.offsets[index]
            part = terms[..., first : first + math.prod(shape)]
            found[index] = part.reshape(*terms.shape[:-1], *shape)
        return found
