"""The ledger: what every sample has given away, charged before a key leaves.

A request moves the words of its samples (`cloister.authority.book`), all or none; the move is one
row of a journal, and the answer leaves when the row is on stable storage. From time to time the
words are written as a whole and the journal starts anew. Requests see moves that are on their way
to the disk, so that none sees less spent than another has been promised; if the disk then fails, no
key is issued at all.

What a move costs is `cloister.authority.functions`, what a state is `cloister.authority.states`.
Releases to the trusted runtime are counted and not charged.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.authority import blur, functions
from cloister.authority.book import (
    LABEL_BIT,
    Book,
    Limits,
    Spent,
    read_book,
    tabulate,
    write_counts,
)
from cloister.authority.database import Database, Ticket
from cloister.authority.states import MAX_EXACT_ENTRIES, Charge, Exceeded, State, write_states
from cloister.errors import BudgetError, FunctionError
from cloister.fe.keyservice import DatasetInfo
from cloister.field.linear import Geometry, LinearMap

JOURNAL_ROWS = 2048
"""Rows after which the words are written as a whole."""
CHARGES_KEPT = 16
"""Prices of functions that are kept: servers ask for the same one sample after sample."""


class BusyError(Exception):
    """A charge cannot be made at once: it has to be worked out, or wait for another one."""


class Ledger:
    """The books of all data sets; the caller is alone in writing them (`Authority` sees to it)."""

    def __init__(self, database: Database, *, modulus: int) -> None:
        self._database, self._modulus = database, modulus
        self._books: dict[str, Book] = {}
        self._lock = threading.Lock()

    def open_book(self, info: DatasetInfo, *, limits: Limits) -> None:
        """Read a data set's pages, which may be empty.

        Raises   EncryptionError when they are damaged
        """
        with self._database.reading() as connection:
            self._books[info.name] = read_book(
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
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        linear: LinearMap,
        *,
        at_once: bool = False,
    ) -> Ticket:
        """Charge a forward key.

        at_once  do it now or not at all: what a new function costs may take seconds to find out
        Raises   BudgetError, FunctionError, EncryptionError; BusyError when it cannot be at once
        """
        with self._turn(at_once=at_once):
            book = self._books[dataset]
            digest, unique = functions.forward_digest(linear), np.unique(ids)
            if at_once and not book.knows(digest, unique):
                raise BusyError
            charge = book.charges.get(digest) or self._price(book, digest, linear)
            self._count_refusal(book, lambda: _check_chosen(book, digest))
            return self._move(book, "forward", unique, [charge] * len(unique))

    def _price(self, book: Book, digest: bytes, linear: LinearMap) -> Charge:
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

    def _value_bits(self, book: Book, linear: LinearMap) -> tuple[int, bool]:
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

    def charge_labels(
        self, dataset: str, ids: Int64[np.ndarray, " n"], *, at_once: bool = False
    ) -> Ticket:
        """Record that labels are released to the server; see `charge_forward`."""
        with self._turn(at_once=at_once):
            book = self._books[dataset]
            before = book.words[ids]
            return self._commit(book, "labels", ids, before, before | LABEL_BIT)

    def count_trusted(self, dataset: str, *, at_once: bool = False) -> Ticket:
        """Record a release to the trusted runtime; see `charge_forward`."""
        with self._turn(at_once=at_once):
            empty = np.empty(0, np.int64)
            words = np.empty(0, np.uint32)
            return self._commit(self._books[dataset], "trusted", empty, words, words)

    @contextlib.contextmanager
    def _turn(self, *, at_once: bool) -> Iterator[None]:
        if not self._lock.acquire(blocking=not at_once):
            raise BusyError
        try:
            yield
        finally:
            self._lock.release()

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
        self, book: Book, kind: str, ids: Int64[np.ndarray, " n"], charges: list[Charge]
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
        book: Book,
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
            return self._database.enqueue(last={name: partial(write_counts, name, counts)})
        row = (name, ids[moved].astype("<i8").tobytes(), after[moved].astype("<u4").tobytes())
        whole = None
        if book.journal_rows + 1 >= JOURNAL_ROWS:
            words = book.words.copy()
            words[ids] = after
            whole = words.astype("<u4").tobytes()
        states, rules = book.states.unwritten()

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

        ticket = self._database.enqueue(write, last={name: partial(write_counts, name, counts)})
        # Not before: what memory has is taken for recorded, and a repeat of it is not charged.
        book.states.written()
        book.words[ids] = after
        book.journal_rows = 0 if whole is not None else book.journal_rows + 1
        return ticket

    def _refuse(self, book: Book, sample: int, state: State, exceeded: Exceeded) -> None:
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

    def _count_refusal(self, book: Book, check: Callable[[], None]) -> None:
        try:
            check()
        except (FunctionError, BudgetError):
            self._note_refusal(book)
            raise

    def _note_refusal(self, book: Book) -> None:
        book.counts["requests"] += 1
        book.counts["refusals"] += 1
        name, counts = book.info.name, dict(book.counts)
        # Not waited for: a refusal gives nothing away.
        self._database.enqueue(last={name: partial(write_counts, name, counts)})


def _check_chosen(book: Book, digest: bytes) -> None:
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


def _check_gradients(book: Book) -> None:
    """Refuse gradients where the data set gives values of one function.

    Raises   BudgetError
    """
    if book.limits.one_function:
        raise BudgetError(
            f"data set {book.info.name}: gives the server values of one function and no gradients; "
            "use a frozen first layer or unmask to a trusted runtime"
        )
