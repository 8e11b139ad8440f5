"""A block of pads: the two keys that its seed stands for, and the mask over its terms.

A block is up to 2^16 pad sets that are made together, with consecutive pad ids. Its pads `r` are
the keystream under one key. The other key masks the terms `A r` on their way and in a store:
`A r + k mod 2^32`, with k the keystream of the same numbers and domains, counted from the first
word of each node's terms.
"""

from dataclasses import dataclass
from typing import Self

from cloister.base.hkdf import derive
from cloister.base.rng import KEY_BYTES
from cloister.errors import RangeError

SEED_BYTES = KEY_BYTES
BLOCK_ROWS_MAX = 1 << 16

_PADS = b"cloister block pads v1"
_MASKS = b"cloister block masks v1"


@dataclass(frozen=True, repr=False)
class BlockKeys:
    """The keys of one block; who has its seed has both.

    Secret   both
    """

    pad_key: bytes
    mask_key: bytes

    @classmethod
    def of(cls, seed: bytes) -> Self:
        """The keys of a seed; two purposes of HKDF, so that neither tells of the other.

        Raises   RangeError for a seed of another length
        """
        if len(seed) != SEED_BYTES:
            raise RangeError(f"pad block: a seed has {SEED_BYTES} bytes, got {len(seed)}")
        return cls(derive(seed, info=_PADS), derive(seed, info=_MASKS))
