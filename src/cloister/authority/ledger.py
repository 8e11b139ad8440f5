"""The ledger: what every sample has given away, charged before a key leaves.

A sample is one 32-bit word: the number of its state, and a bit for its label. A request moves the
words of its samples, all or none; the move is one row of a journal, and the answer leaves when the
row is on stable storage. From time to time the words are written as a whole and the journal
starts anew. Moves are made in memory first, so that a request never sees less spent than another
has been promised; if the disk then fails, no key is issued at all.

What a move costs is `cloister.authority.functions`, what a state is `cloister.authority.states`.
Releases to the trusted runtime are counted and not charged.
"""

import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.authority import blur, functions
from cloister.authority.database import Database, Ticket
from cloister.authority.states import (
    MAX_EXACT_ENTRIES,
    Charge,
    Exceeded,
    State,
    States,
    read_function,
    read_states,
    write_states,
)
from cloister.errors import BudgetError, EncryptionError, FunctionError
from cloister.fe.keyservice import DatasetInfo
from cloister.field.linear import Geometry, LinearMap

LABEL_BIT = np.uint32(1 << 31)
JOURNAL_ROWS = 2048
"""Rows after which the words are written as a whole."""
CHARGES_KEPT = 16
"""Prices of functions that are kept: servers ask for the same one sample after sample."""
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
class _Book:
    """The ledger's pages of one data set."""

    info: DatasetInfo
    limits: Limits
    states: States
    words: UInt32[np.ndarray, " samples"]
    counts: dict[str, int]
    journal_rows: int = 0
    charges: dict[bytes, Charge] = field(default_factory=dict)

    @property
    def budget(self) -> int | None:
        return None if self.info.mode == "paper" else self.info.budget_rank


class Ledger:
    """The books of all data sets; the caller is alone in writing them (`Authority` sees to it)."""

    def __init__(self, database: Database, *, modulus: int) -> None:
        self._database, self._modulus = database, modulus
        self._books: dict[str, _Book] = {}
        self._lock = threading.Lock()

    def open_book(self, info: DatasetInfo, *, limits: Limits) -> None:
        """Read a data set's pages, which may be empty.

        Raises   EncryptionError when they are damaged
        """
        with self._database.reading() as connection:
            self._books[info.name] = _read_book(
                connection, info, limits=limits, modulus=self._modulus
            )

    def grow(self, info: DatasetInfo) -> None:
        """A data set has more samples now."""
        with self._lock:
            book = self._books[info.name]
            more = np.zeros(info.samples - len(book.words), np.uint32)
            book.words = np.concatenate([book.words, more])
            book.info = info

    def charge_forward(
        self, dataset: str, ids: Int64[np.ndarray, " n"], linear: LinearMap
    ) -> Ticket:
        """Charge a forward key.

        Raises   BudgetError, FunctionError, EncryptionError
        """
        with self._lock:
            book = self._books[dataset]
            digest = functions.forward_digest(linear)
            charge = book.charges.get(digest) or self._price(book, digest, linear)
            self._count_refusal(book, lambda: _check_chosen(book, digest))
            unique = np.unique(ids)
            return self._move(book, "forward", unique, [charge] * len(unique))

    def _price(self, book: _Book, digest: bytes, linear: LinearMap) -> Charge:
        """What a forward function costs, kept once it has been found admissible."""
        info, rows = book.info, functions.Rows(linear)
        if book.budget is not None:
            self._count_refusal(book, lambda: functions.check_rows(info, rows))
        exact = book.budget is not None and max(book.budget, 1) * info.dim <= MAX_EXACT_ENTRIES
        bits, blurred = self._value_bits(book, linear)
        charge = Charge(
            digest,
            rank=min(info.dim, rows.count),
            bits_each=bits,
            operand=int(np.abs(linear.weights.astype(np.int32)).max(initial=0)),
            linear=linear if exact else None,
            values=rows.count if blurred else 0,
        )
        if len(book.charges) >= CHARGES_KEPT:
            book.charges.pop(next(iter(book.charges)))
        book.charges[digest] = charge
        return charge

    def _value_bits(self, book: _Book, linear: LinearMap) -> tuple[int, bool]:
        """Bits that a value of a function tells at most, and whether blur makes it so."""
        allowed = book.limits.value_bits
        try:
            blurred = blur.shift(book.info, linear, allowed) > 0
        except FunctionError:
            self._note_refusal(book)
            raise
        return (allowed if blurred else functions.row_bits(book.info, linear.weights)), blurred

    def charge_gradient(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        geometry: Geometry,
        delta: Int16[np.ndarray, "n oh ow oc"],
    ) -> Ticket:
        """Charge a gradient key: each sample with the functionals restricted to itself.

        Raises   BudgetError, FunctionError, EncryptionError
        """
        with self._lock:
            book = self._books[dataset]
            info = book.info
            if book.budget is not None:
                self._count_refusal(book, lambda: functions.check_deltas(info, delta))
            self._count_refusal(book, lambda: _check_gradients(book))
            ranks = functions.gradient_charges(info, geometry, delta)
            sizes = np.abs(delta.astype(np.int32)).reshape(len(ids), -1)
            norms, tops = sizes.sum(axis=1, dtype=np.int64), sizes.max(axis=1, initial=0)
            words = book.words[ids] & ~LABEL_BIT
            charges = []
            for i, rank in enumerate(ranks.tolist()):
                # Whoever has given away everything needs no name for this release.
                full = book.states.is_full(book.states.all[int(words[i])])
                digest = b"" if full else functions.gradient_digest(geometry, delta[i])
                bits = max(1, (2 * info.encoding.bound * int(norms[i])).bit_length())
                charges.append(Charge(digest, rank, bits, int(tops[i])))
            return self._move(book, "gradient", ids, charges)

    def charge_labels(self, dataset: str, ids: Int64[np.ndarray, " n"]) -> Ticket:
        """Record that labels are released to the server."""
        with self._lock:
            book = self._books[dataset]
            before = book.words[ids]
            return self._commit(book, "labels", ids, before, before | LABEL_BIT)

    def count_trusted(self, dataset: str) -> Ticket:
        """Record a release to the trusted runtime."""
        with self._lock:
            empty = np.empty(0, np.int64)
            words = np.empty(0, np.uint32)
            return self._commit(self._books[dataset], "trusted", empty, words, words)

    def spent(self, dataset: str) -> Spent:
        """What each sample has given away."""
        with self._lock:
            book = self._books[dataset]
            return tabulate(book.words, book.states.all)

    def counts(self, dataset: str) -> dict[str, int]:
        """Requests and refusals so far."""
        with self._lock:
            return dict(self._books[dataset].counts)

    def _move(
        self, book: _Book, kind: str, ids: Int64[np.ndarray, " n"], charges: list[Charge]
    ) -> Ticket:
        before = book.words[ids]
        after = before.copy()
        memo: dict[tuple[int, bytes], int | Exceeded] = {}
        for i, (word, charge) in enumerate(zip(before.tolist(), charges, strict=True)):
            source = word & ~int(LABEL_BIT)
            key = (source, charge.digest)
            if key not in memo:
                memo[key] = book.states.move(
                    source, charge, budget=book.budget, max_bits=book.limits.max_bits
                )
            found = memo[key]
            if isinstance(found, Exceeded):
                self._refuse(book, int(ids[i]), book.states.all[source], found)
            else:
                after[i] = found | (word & int(LABEL_BIT))
        return self._commit(book, kind, ids, before, after)

    def _commit(
        self,
        book: _Book,
        kind: str,
        ids: Int64[np.ndarray, " n"],
        before: UInt32[np.ndarray, " n"],
        after: UInt32[np.ndarray, " n"],
    ) -> Ticket:
        """Record a move, when there is one; a ticket for it and for all moves before it."""
        book.counts["requests"] += 1
        book.counts[kind] += 1
        moved = before != after
        name, counts = book.info.name, dict(book.counts)
        if not moved.any() and kind != "trusted":
            # Nothing new is given away; what it repeats may still be on its way to the disk.
            # Counters follow with the next move.
            return self._database.latest()
        if not moved.any():
            return self._database.enqueue(last={name: partial(_write_counts, name, counts)})
        book.words[ids] = after
        states, rules = book.states.take_fresh()
        row = (name, ids[moved].astype("<i8").tobytes(), after[moved].astype("<u4").tobytes())
        book.journal_rows += 1
        whole = None
        if book.journal_rows >= JOURNAL_ROWS:
            book.journal_rows = 0
            whole = book.words.astype("<u4").tobytes()

        def write(connection: sqlite3.Connection) -> None:
            write_states(connection, name, states)
            connection.executemany("INSERT OR IGNORE INTO functionals VALUES (?, ?, ?)", rules)
            if whole is None:
                connection.execute(
                    "INSERT INTO journal (dataset, ids, words) VALUES (?, ?, ?)", row
                )
            else:
                connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (name, whole))
                connection.execute("DELETE FROM journal WHERE dataset = ?", (name,))

        return self._database.enqueue(write, last={name: partial(_write_counts, name, counts)})

    def _refuse(self, book: _Book, sample: int, state: State, exceeded: Exceeded) -> None:
        self._note_refusal(book)
        name = book.info.name
        if book.budget is not None and exceeded.needed > book.budget:
            raise BudgetError(
                f"data set {name}, sample {sample}: this key would bring the rank given away from "
                f"{state.spent} to at least {exceeded.needed} of {book.info.dim}, allowed are "
                f"{book.budget}; use a frozen first layer or unmask to a trusted runtime"
            )
        raise BudgetError(
            f"data set {name}, sample {sample}: this key would bring the bits given away from "
            f"{state.bits} to {exceeded.bits}, allowed are {book.limits.max_bits}; use fewer or "
            "coarser functions"
        )

    def _count_refusal(self, book: _Book, check: Callable[[], None]) -> None:
        try:
            check()
        except (FunctionError, BudgetError):
            self._note_refusal(book)
            raise

    def _note_refusal(self, book: _Book) -> None:
        book.counts["requests"] += 1
        book.counts["refusals"] += 1
        name, counts = book.info.name, dict(book.counts)
        # Not waited for: a refusal gives nothing away.
        self._database.enqueue(last={name: partial(_write_counts, name, counts)})


def _check_chosen(book: _Book, digest: bytes) -> None:
    """Refuse a second function where the data set gives values of one.

    Values of different functions on different samples are each within their sample's budget, and
    together tell the mean and the covariance of the data set: an attacker's best prior. Under one
    function for all, the directions it does not see stay unseen in every sample. The function is
    the one of the first key that was issued; the states on record tell it.

    Raises   BudgetError
    """
    if not book.limits.one_function:
        return
    chosen = {state.digest for state in book.states.all[1:]}
    if chosen and digest not in chosen:
        raise BudgetError(
            f"data set {book.info.name}: the server has values of another function already, and "
            f"this data set gives values of one function only (of rank {book.budget}: allowed are "
            f"{book.budget}); use the same projection, or unmask to a trusted runtime"
        )


def _check_gradients(book: _Book) -> None:
    """Refuse gradients where the data set gives values of one function.

    Raises   BudgetError
    """
    if book.limits.one_function:
        raise BudgetError(
            f"data set {book.info.name}: gives the server values of one function and no gradients; "
            "use a frozen first layer or unmask to a trusted runtime"
        )


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


def _write_counts(dataset: str, counts: dict[str, int], connection: sqlite3.Connection) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO counters VALUES (?, ?, ?)",
        [(dataset, what, count) for what, count in counts.items()],
    )


def _read_book(
    connection: sqlite3.Connection, info: DatasetInfo, *, limits: Limits, modulus: int
) -> _Book:
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
    return _Book(info, limits, states, words, read_counts(connection, info.name), rows)
