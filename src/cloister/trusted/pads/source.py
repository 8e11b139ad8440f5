"""Pads and their sources: a source hands out each pad once, and its memory is overwritten when it
is spent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class PadSet:
    """The pads of one input of one plan: its id, and `A r` of every blinded node by node index.

    Secret   unblinding; single use. Its user overwrites it (`fill(0)`).
    """

    pad_id: int
    unblinding: dict[int, np.ndarray]


def reclaim(pads: Sequence[PadSet]) -> list[dict[int, np.ndarray]]:
    """Take back the memory of spent pads; the pads are empty afterwards.

    Emptied, so that memory given back twice is not handed out twice. What it holds is overwritten
    by the next pad set, or by `erase` at the end: as long as the pad key lives, an attacker who
    reads this memory could compute `r` and `A r` anyway (docs/adr/0006).
    """
    memory = []
    for pad in pads:
        if pad.unblinding:
            memory.append(dict(pad.unblinding))
            pad.unblinding.clear()
    return memory


def erase(memory: Sequence[Mapping[int, np.ndarray]]) -> None:
    """Overwrite the memory of spent pads."""
    for arrays in memory:
        for array in arrays.values():
            array.fill(0)


@runtime_checkable
class PadSource(Protocol):
    """Hands out pads, each once: a store, or a maker on demand."""

    @property
    def kind(self) -> str:
        """Where the pads come from, for the report."""
        ...

    @property
    def pad_key(self) -> bytes:
        """Key of the keystream that is `r`. Secret."""
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
        """Take spent pads back; views of their arrays must not be used any more."""
        ...

    def erase(self) -> None:
        """Overwrite the memory of the pads taken back."""
        ...
