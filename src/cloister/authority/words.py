"""The releases of a data set's samples, as one 32-bit word each, and their stored form.

A word is the number of the sample's state (`cloister.authority.states`), and a bit for its label.
"""

import sqlite3

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.errors import EncryptionError

LABEL_BIT = np.uint32(1 << 31)
BLOCK_BITS = 8
BLOCK = 1 << BLOCK_BITS
"""Samples whose words are kept, and stored, together."""
ROWS_COUNTED = 1 << 12


class Words:
    """The samples' words, by blocks: those of samples that gave nothing away take no memory.

    A client may claim any number of samples; only what a server was given makes a block.

    unfolded   blocks that differ from the stored ones; their words are in the journal
    """

    def __init__(self) -> None:
        # Row 0 stands for every block that was never written; so does the last place, for all
        # blocks behind it.
        self._rows = np.zeros((1, BLOCK), np.uint32)
        self._place = np.zeros(1, np.int32)
        self._used = 0
        self.unfolded: set[int] = set()

    def __getitem__(self, ids: Int64[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
        places = self._place.take(ids >> BLOCK_BITS, mode="clip")
        return np.asarray(self._rows[places, ids & (BLOCK - 1)])

    def __setitem__(self, ids: Int64[np.ndarray, " n"], words: UInt32[np.ndarray, " n"]) -> None:
        blocks = ids >> BLOCK_BITS
        self._cover(blocks)
        self.unfolded.update(np.unique(blocks).tolist())
        self._rows[self._place[blocks], ids & (BLOCK - 1)] = words

    def _cover(self, blocks: Int64[np.ndarray, " n"]) -> None:
        more = int(blocks.max(initial=-1)) + 2 - len(self._place)
        if more > 0:
            self._place = np.concatenate([self._place, np.zeros(more, np.int32)])
        fresh = np.unique(blocks[self._place[blocks] == 0])
        first = self._used + 1
        needed = first + len(fresh)
        if needed > len(self._rows):
            grown = np.zeros((max(needed, 2 * first), BLOCK), np.uint32)
            grown[:first] = self._rows[:first]
            self._rows = grown
        self._place[fresh] = np.arange(first, needed, dtype=np.int32)
        self._used += len(fresh)

    def folded(
        self, ids: Int64[np.ndarray, " n"], words: UInt32[np.ndarray, " n"]
    ) -> list[tuple[int, bytes]]:
        """The blocks that differ from the stored ones once these words are set, as stored."""
        blocks = ids >> BLOCK_BITS
        numbers = np.array(sorted(self.unfolded.union(blocks.tolist())), np.int64)
        rows = self._rows[self._place.take(numbers, mode="clip")]
        rows[np.searchsorted(numbers, blocks), ids & (BLOCK - 1)] = words
        stored = rows.astype("<u4")
        return [(n, row.tobytes()) for n, row in zip(numbers.tolist(), stored, strict=True)]

    def count(self, samples: int, states: int) -> tuple[Int64[np.ndarray, " states"], int]:
        """How many of the first `samples` samples are in each state, and how many gave a label."""
        found, labels = np.zeros(states, np.int64), 0
        for start in range(1, self._used + 1, ROWS_COUNTED):
            words = self._rows[start : min(start + ROWS_COUNTED, self._used + 1)].reshape(-1)
            found += np.bincount(words & ~LABEL_BIT, minlength=states)
            labels += int(np.count_nonzero(words & LABEL_BIT))
        # What fills up the blocks, and what has none.
        found[0] += samples - self._used * BLOCK
        return found, labels

    def highest(self) -> int:
        """The largest number of a state."""
        return int((self._rows & ~LABEL_BIT).max())


def read_words(connection: sqlite3.Connection, dataset: str, samples: int) -> tuple[Words, int]:
    """The samples' words as committed, and the rows of the journal.

    Raises   EncryptionError
    """
    words = Words()
    stored = connection.execute("SELECT block, words FROM words WHERE dataset = ?", (dataset,))
    for block, whole in stored:
        first = block << BLOCK_BITS
        ids = np.arange(first, min(first + BLOCK, samples), dtype=np.int64)
        _set(words, dataset, samples, ids, whole[: 4 * len(ids)])
    words.unfolded.clear()
    count = 0
    for places, moved in connection.execute(
        "SELECT ids, words FROM journal WHERE dataset = ? ORDER BY seq", (dataset,)
    ):
        _set(words, dataset, samples, np.frombuffer(places, "<i8").astype(np.int64), moved)
        count += 1
    return words, count


def _set(
    words: Words, dataset: str, samples: int, ids: Int64[np.ndarray, " n"], stored: bytes
) -> None:
    found = np.frombuffer(stored, "<u4")
    inside = len(ids) > 0 and 0 <= int(ids.min()) <= int(ids.max()) < samples
    if not inside or len(found) != len(ids):
        raise EncryptionError(f"ledger: the journal of {dataset} is damaged; use a backup")
    words[ids] = found


def fold(dataset: str, blocks: list[tuple[int, bytes]], connection: sqlite3.Connection) -> None:
    """Store blocks of words as they are, and start the journal anew."""
    connection.executemany(
        "INSERT OR REPLACE INTO words VALUES (?, ?, ?)",
        [(dataset, block, whole) for block, whole in blocks],
    )
    connection.execute("DELETE FROM journal WHERE dataset = ?", (dataset,))
