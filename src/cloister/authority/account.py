"""One data set's account in the ledger: in memory, and as it is stored.

A sample is one 32-bit word: the number of its state, and a bit for its label.
"""

import sqlite3
import threading
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import noise
from cloister.authority.states import Charge, State, States, read_function, read_states
from cloister.data.info import DatasetInfo
from cloister.errors import EncryptionError

LABEL_BIT = np.uint32(1 << 31)
BLOCK_BITS = 8
BLOCK = 1 << BLOCK_BITS
"""Samples whose words are kept, and stored, together."""
ROWS_COUNTED = 1 << 12
COUNTED = ("requests", "refusals", "forward", "gradient", "labels", "trusted")


@dataclass(frozen=True)
class Spent:
    """What the samples of a data set have given away to the server, sample by sample."""

    rank: Int64[np.ndarray, " samples"]
    bits: Int64[np.ndarray, " samples"]
    operand: Int64[np.ndarray, " samples"]
    labels: Int64[np.ndarray, " samples"]


@dataclass(frozen=True)
class Tally:
    """The same in figures, without a value for each sample; the median is over all samples."""

    rank_min: int
    rank_median: float
    rank_max: int
    bits_max: int
    operand_max: int
    labels: int
    counts: dict[str, int]


@dataclass(frozen=True)
class LedgerLimits:
    """What a data set's terms allow besides its budget of rank; see `records.Terms`."""

    max_bits: int | None
    value_bits: int
    one_function: bool


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


@dataclass
class Account:
    """What is known of a data set's samples.

    counts        requests and refusals so far
    journal_rows  moves in the journal
    charges       what functions cost that were found admissible
    lock          held by whoever reads or moves words: data sets do not wait for each other
    """

    info: DatasetInfo
    limits: LedgerLimits
    states: States
    words: Words
    counts: dict[str, int]
    journal_rows: int = 0
    charges: dict[bytes, Charge] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def knows(self, digest: bytes, ids: Int64[np.ndarray, " n"]) -> bool:
        """Whether the function's cost for each of these samples was worked out before."""
        sources = set((self.words[ids] & ~LABEL_BIT).tolist())
        return digest in self.charges and all(
            self.states.known(source, digest) is not None for source in sources
        )

    def is_full(self, ids: Int64[np.ndarray, " n"]) -> bool:
        """Whether all these samples have given away everything."""
        sources = set((self.words[ids] & ~LABEL_BIT).tolist())
        return all(self.states.is_full(self.states.all[source]) for source in sources)

    @property
    def budget(self) -> int | None:
        """Rank that may be given away of each sample; None: all."""
        return None if self.info.mode == "paper" else self.info.budget_rank


def tabulate(words: Words, samples: int, states: list[State]) -> Spent:
    """Words as figures."""
    table = np.array([(s.spent, s.bits, s.operand) for s in states], np.int64)
    found = words[np.arange(samples, dtype=np.int64)]
    rows = table[found & ~LABEL_BIT]
    return Spent(rows[:, 0], rows[:, 1], rows[:, 2], ((found & LABEL_BIT) != 0).astype(np.int64))


def tally(words: Words, samples: int, states: list[State], counts: dict[str, int]) -> Tally:
    """Words in figures; takes memory for the states, and for no sample."""
    found, labels = words.count(samples, len(states))
    used = [state for state, count in zip(states, found.tolist(), strict=True) if count]
    order = np.argsort([state.spent for state in states], kind="stable")
    behind = np.cumsum(found[order])
    # The two samples in the middle, which are one where their number is odd.
    middle = np.searchsorted(behind, [(samples - 1) // 2, samples // 2], side="right")
    middle = np.minimum(middle, len(states) - 1)
    return Tally(
        rank_min=min((state.spent for state in used), default=0),
        rank_median=sum(states[order[place]].spent for place in middle.tolist()) / 2,
        rank_max=max((state.spent for state in used), default=0),
        bits_max=max((state.bits for state in used), default=0),
        operand_max=max((state.operand for state in used), default=0),
        labels=labels,
        counts=dict(counts),
    )


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


def read_counts(connection: sqlite3.Connection, dataset: str) -> dict[str, int]:
    """The counters as committed."""
    counts = dict.fromkeys(COUNTED, 0)
    rows = connection.execute("SELECT what, count FROM counters WHERE dataset = ?", (dataset,))
    counts.update(dict(rows.fetchall()))
    return counts


def write_counts(dataset: str, counts: dict[str, int], connection: sqlite3.Connection) -> None:
    """Store the counters."""
    connection.executemany(
        "INSERT OR REPLACE INTO counters VALUES (?, ?, ?)",
        [(dataset, what, count) for what, count in counts.items()],
    )


def new_account(info: DatasetInfo, *, limits: LedgerLimits, modulus: int) -> Account:
    """The account of a data set that has given nothing away."""
    states = States(
        dim=info.dim,
        element_bits=info.encoding.bits,
        modulus=modulus,
        noisy=limits.value_bits < noise.EXACT_BITS,
    )
    return Account(info, limits, states, Words(), dict.fromkeys(COUNTED, 0))


def read_account(
    connection: sqlite3.Connection, info: DatasetInfo, *, limits: LedgerLimits, modulus: int
) -> Account:
    """A data set's account as it is stored.

    Raises   EncryptionError when it is damaged
    """
    account = new_account(info, limits=limits, modulus=modulus)
    stored = read_states(connection, info.name)
    known = {
        digest: read_function(geometry, weights)
        for digest, geometry, weights in connection.execute(
            "SELECT digest, geometry, weights FROM functionals WHERE digest IN "
            "(SELECT digest FROM states WHERE dataset = ? AND exact)",
            (info.name,),
        )
    }
    account.states.restore(stored, known)
    account.words, account.journal_rows = read_words(connection, info.name, info.samples)
    if account.words.highest() >= len(account.states.all):
        raise EncryptionError(f"ledger: a sample of {info.name} has no state; use a backup")
    account.counts = read_counts(connection, info.name)
    return account
