"""Pads and their sources: a source hands out each pad once, and its memory is overwritten when it
is spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt32

_EMPTY = np.zeros(0, np.uint32)


@dataclass(eq=False, repr=False, slots=True)
class PadSet:
    """The pads of one input of one plan.

    key        of the keystream that is `r`
    terms      `A r` of every blinded node (pad_layout.py); empty once the pad set is spent
    mask_key   None, or the terms are `A r + k` (mod 2^32), with k the AES-256-CTR keystream under
               this key and the nonce of pad id and node, counted from the node's first word

    Secret   all but the id; single use. Its user overwrites the terms.
    """

    pad_id: int
    key: bytes
    terms: UInt32[np.ndarray, " words"]
    mask_key: bytes | None = None


def reclaim(pads: Sequence[PadSet]) -> list[UInt32[np.ndarray, " words"]]:
    """Take back the memory of spent pads; the pads are empty afterwards.

    Emptied, so that memory given back twice is not handed out twice. What it holds is overwritten
    by the next pad set, or by `erase` at the end: as long as the pad key lives, an attacker who
    reads this memory could compute `r` and `A r` anyway (docs/adr/0006).
    """
    memory = []
    for pad in pads:
        if pad.terms.size:
            memory.append(pad.terms)
            pad.terms = _EMPTY
    return memory


def erase(memory: Sequence[np.ndarray]) -> None:
    """Overwrite the memory of spent pads."""
    for terms in memory:
        terms.fill(0)


@runtime_checkable
class PadSource(Protocol):
    """Hands out pads, each once: a store, or a maker on demand."""

    @property
    def kind(self) -> str:
        """Where the pads come from, for the report."""
        ...

    @property
    def plan_digest(self) -> bytes:
        """The plan these pads blind."""
        ...

    def take(self, count: int) -> list[PadSet]:
        """`count` pads that were not handed out before, to whichever thread.

        Raises   PadsExhausted when there are fewer; then none was taken
        """
        ...

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """Take spent pads back; views of their terms must not be used any more."""
        ...

    def erase(self) -> None:
        """Overwrite the memory of the pads taken back."""
        ...
