"""One data set's pages of the ledger: in memory, and as they are stored.

A sample is one 32-bit word: the number of its state, and a bit for its label.
"""

import sqlite3
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import blur
from cloister.authority.states import Charge, State, States, read_function, read_states
from cloister.errors import EncryptionError
from cloister.fe.keyservice import DatasetInfo

LABEL_BIT = np.uint32(1 << 31)
COUNTED = ("requests", "refusals", "forward", "gradient", "labels", "trusted")


@dataclass(frozen=True)
class Spent:
    """What the samples of a data set have given away to the server, sample by sample."""

    rank: Int64[np.ndarray, " samples"]
    bits: Int64[np.ndarray, " samples"]
    operand: Int64[np.ndarray, " samples"]
    labels: Int64[np.ndarray, " samples"]


@dataclass(frozen=True)
class Limits:
    """What a data set's terms allow besides its budget of rank; see `records.Terms`."""

    max_bits: int | None
    value_bits: int
    one_function: bool


@dataclass
class Book:
    """What is known of a data set's samples.

    counts        requests and refusals so far
    journal_rows  moves since the words were last written as a whole
    charges       what functions cost that were found admissible
    """

    info: DatasetInfo
    limits: Limits
    states: States
    words: UInt32[np.ndarray, " samples"]
    counts: dict[str, int]
    journal_rows: int = 0
    charges: dict[bytes, Charge] = field(default_factory=dict)

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


def tabulate(words: UInt32[np.ndarray, " samples"], states: list[State]) -> Spent:
    """Words as figures."""
    table = np.array([(s.spent, s.bits, s.operand) for s in states], np.int64)
    rows = table[words & ~LABEL_BIT]
    return Spent(rows[:, 0], rows[:, 1], rows[:, 2], ((words & LABEL_BIT) != 0).astype(np.int64))


def read_words(
    connection: sqlite3.Connection, dataset: str, samples: int
) -> tuple[UInt32[np.ndarray, " samples"], int]:
    """The samples' words as committed, and the rows of the journal.

    Raises   EncryptionError
    """
    words = np.zeros(samples, np.uint32)
    found = connection.execute(
        "SELECT words FROM snapshots WHERE dataset = ?", (dataset,)
    ).fetchone()
    if found is not None:
        whole = np.frombuffer(found[0], "<u4")
        words[: len(whole)] = whole
    count = 0
    for ids, moved in connection.execute(
        "SELECT ids, words FROM journal WHERE dataset = ? ORDER BY seq", (dataset,)
    ):
        places = np.frombuffer(ids, "<i8")
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < samples:
            raise EncryptionError(f"ledger: the journal of {dataset} is damaged; use a backup")
        words[places] = np.frombuffer(moved, "<u4")
        count += 1
    return words, count


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


def read_book(
    connection: sqlite3.Connection, info: DatasetInfo, *, limits: Limits, modulus: int
) -> Book:
    """A data set's pages, which may be empty.

    Raises   EncryptionError when they are damaged
    """
    stored = read_states(connection, info.name)
    wanted = {state.digest for state in stored if state.exact}
    known = {
        digest: read_function(geometry, weights)
        for digest, geometry, weights in connection.execute(
            "SELECT digest, geometry, weights FROM functionals"
        )
        if digest in wanted
    }
    states = States(
        dim=info.dim,
        element_bits=info.encoding.bits,
        modulus=modulus,
        blurred=limits.value_bits < blur.EXACT_BITS,
    )
    states.restore(stored, known)
    words, rows = read_words(connection, info.name, info.samples)
    if len(words) and int((words & ~LABEL_BIT).max()) >= len(states.all):
        raise EncryptionError(f"ledger: a sample of {info.name} has no state; use a backup")
    return Book(info, limits, states, words, read_counts(connection, info.name), rows)
