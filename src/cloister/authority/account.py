"""One data set's account in the ledger: in memory, and as it is stored."""

import sqlite3
import threading
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64

from cloister.authority import noise
from cloister.authority.states import Charge, State, States, read_function, read_states
from cloister.authority.words import LABEL_BIT, Words, read_words
from cloister.data.info import DatasetInfo
from cloister.errors import EncryptionError

COUNTED = ("requests", "refusals", "forward", "gradient", "labels", "evaluation", "trusted")


@dataclass(frozen=True)
class Spent:
    """The releases of a data set's samples to the server, sample by sample."""

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
    evaluations: int
    counts: dict[str, int]


@dataclass(frozen=True)
class LedgerLimits:
    """The limits of a data set's terms besides its budget of rank; see `records.Terms`.

    evaluations   None: any number, of labels that the server may have anyway
    """

    max_bits: int | None
    value_bits: int
    one_function: bool
    evaluations: int | None


@dataclass
class Account:
    """The state of a data set's samples.

    counts        requests and refusals so far
    journal_rows  moves in the journal
    charges       prices of functions that were found admissible
    evaluations   names of the sums over labels that were charged
    lock          held by a thread that reads or moves words: data sets do not wait for each other
    """

    info: DatasetInfo
    limits: LedgerLimits
    states: States
    words: Words
    counts: dict[str, int]
    journal_rows: int = 0
    charges: dict[bytes, Charge] = field(default_factory=dict)
    evaluations: set[bytes] = field(default_factory=set)
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

    def tally(self, samples: int) -> Tally:
        """The releases of the first `samples` samples, in figures."""
        charged = len(self.evaluations)
        return tally(self.words, samples, self.states.all, self.counts, evaluations=charged)

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


def tally(
    words: Words, samples: int, states: list[State], counts: dict[str, int], *, evaluations: int
) -> Tally:
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
        evaluations=evaluations,
        counts=dict(counts),
    )


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
    charged = connection.execute("SELECT digest FROM evaluations WHERE dataset = ?", (info.name,))
    account.evaluations = {digest for (digest,) in charged}
    return account


def write_evaluation(dataset: str, digest: bytes, connection: sqlite3.Connection) -> None:
    """Store that a sum over labels was charged."""
    connection.execute("INSERT INTO evaluations VALUES (?, ?)", (dataset, digest))
