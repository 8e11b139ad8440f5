"""Searches bytes for hidden weights: every word of two neighbouring weights, at every offset."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from cloister.graph.graph import Graph

_WORD = np.dtype("<u8")


@dataclass(frozen=True)
class Search:
    """What a search found.

    place          what was searched, for people
    nbytes         how much
    hidden_words   how many of the hidden words were there
    """

    place: str
    nbytes: int
    hidden_words: int


class HiddenWords:
    """The words of 8 bytes that the weights of a module consist of.

    A word with a zero or with two equal halves is left out: padding, and not a weight's.
    """

    def __init__(self, hidden: Graph, packed: bytes) -> None:
        floats = [a.tobytes() for a in hidden.constants.values() if a.dtype == np.float32]
        halves = [np.frombuffer(data, "<u4").astype(np.uint64) for data in (packed, *floats)]
        words = np.unique(np.concatenate([h[:-1] | h[1:] << np.uint64(32) for h in halves]))
        low, high = words & np.uint64(2**32 - 1), words >> np.uint64(32)
        self.words: UInt64[np.ndarray, " n"] = words[(low != 0) & (high != 0) & (low != high)]

    def search(self, place: str, parts: Iterable[bytes]) -> Search:
        """Search each part, from every byte on."""
        kept = list(parts)
        found = np.zeros(len(self.words), bool)
        for part in kept:
            # Fewer offsets in a part that has less than two words.
            for at in range(min(_WORD.itemsize, len(part) - _WORD.itemsize + 1)):
                count = (len(part) - at) // _WORD.itemsize
                found |= np.isin(self.words, np.frombuffer(part, _WORD, count, at))
        return Search(place, sum(map(len, kept)), int(found.sum()))
