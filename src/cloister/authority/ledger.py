"""The ledger: what every sample has given away, charged before a key leaves.

A request moves the words of its samples (`cloister.authority.book`), all or none; the move is one
row of a journal, and the answer leaves when the row is on stable storage. From time to time the
words that changed are written as they are and the journal starts anew. Requests see moves that are
on their way to the disk, so that none sees less spent than another has been promised; while the
disk fails, no key is issued at all. Data sets have a lock each and never wait for each other.

What a move costs is `cloister.authority.functions`, what a state is `cloister.authority.states`.
Releases to the trusted runtime are counted and not charged.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import numpy as np
from jaxtyping import Int16, Int64, UInt32

from cloister.authority import blur, functions
from cloister.authority.book import (
    LABEL_BIT,
    Book,
    Limits,
    Spent,
    Tally,
    fold,
    new_book,
    read_book,
    tabulate,
    tally,
    write_counts,
)
from cloister.authority.database import Database, Ticket
from cloister.authority.states import Charge, Exceeded, State, counted_exactly, write_states
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

    def read_book(self, info: DatasetInfo, *, limits: Limits) -> None:
        """Read a data set's pages as they are stored.

        Raises   EncryptionError when they are damaged
        """
        with self._database.reading() as connection:
            self._books[info.name] = read_book(
                connection, info, limits=limits, modulus=self._modulus
            )

    def new_book(self, info: DatasetInfo, *, limits: Limits) -> Book:
        """Empty pages, for `open_book`."""
        return new_book(info, limits=limits, modulus=self._modulus)

    def open_book(self, book: Book) -> None:
        """From now on, charge requests for its data set."""
        self._books[book.info.name] = book

    def grow(self, info: DatasetInfo) -> None:
        """A data set has more samples now."""
        with self._turn(info.name) as book:
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
        digest, unique = functions.forward_digest(linear), np.unique(ids)
        with self._turn(dataset, at_once=at_once) as book:
            if at_once and not book.knows(digest, unique):
                raise BusyError
            charge = book.charges.get(digest) or self._price(book, digest, linear, unique)
            self._count_refusal(book, lambda: _check_chosen(book, digest))
            return self._move(book, "forward", unique, charge)

    def _price(
        self, book: Book, digest: bytes, linear: LinearMap, ids: Int64[np.ndarray, " n"]
    ) -> Charge:
        """What a forward function costs, kept once it has been found admissible."""
        info, rows = book.info, functions.Rows(linear)
        bits, blurred = self._value_bits(book, linear)
        values = rows.count if blurred else 0
        most = book.limits.max_bits
        if most is not None and values * bits > most:
            # Known from the shapes, so before any work on the rows.
            self._note_refusal(book)
            raise BudgetError(
                f"data set {info.name}, sample {int(ids[0])}: this key has {values} values of "
                f"{bits} bits each: of rank, allowed are {book.budget} of {info.dim}, and {most} "
                "bits in all; use a frozen first layer or unmask to a trusted runtime"
            )
        if book.budget is not None:
            self._count_refusal(book, lambda: functions.check_rows(info, rows))
        exact = book.budget is not None and counted_exactly(rows.count, info.dim, book.budget)
        charge = Charge(
            digest,
            rank=min(info.dim, rows.count),
            bits_each=bits,
            operand=int(functions.magnitudes(linear.weights).max(initial=0)),
            linear=linear if exact else None,
            values=values,
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
        with self._turn(dataset) as book:
            info = book.info
            if book.budget is not None:
                self._count_refusal(book, lambda: functions.check_deltas(info, delta))
            self._count_refusal(book, lambda: _check_gradients(book))
            ranks = functions.gradient_charges(info, geometry, delta)
            sizes = functions.magnitudes(delta).reshape(len(ids), -1)
            norms, tops = sizes.sum(axis=1, dtype=np.int64), sizes.max(axis=1, initial=0)
            words = book.words[ids] & ~LABEL_BIT
            charges = []
            for i, rank in enumerate(ranks.tolist()):
                # Whoever has given away everything needs no name for this release.
                full = book.states.is_full(book.states.all[int(words[i])])
                digest = b"" if full else functions.gradient_digest(geometry, delta[i])
                bits = max(1, (2 * info.encoding.bound * int(norms[i])).bit_length())
                charges.append(Charge(digest, rank, bits, int(tops[i])))
            return self._move_each(book, "gradient", ids, charges)

    def charge_labels(
        self, dataset: str, ids: Int64[np.ndarray, " n"], *, at_once: bool = False
    ) -> Ticket:
        """Record that labels are released to the server; see `charge_forward`."""
        with self._turn(dataset, at_once=at_once) as book:
            before = book.words[ids]
            return self._commit(book, "labels", ids, before, before | LABEL_BIT)

    def count_trusted(self, dataset: str, *, at_once: bool = False) -> Ticket:
        """Record a release to the trusted runtime; see `charge_forward`."""
        with self._turn(dataset, at_once=at_once) as book:
            empty = np.empty(0, np.int64)
            words = np.empty(0, np.uint32)
            return self._commit(book, "trusted", empty, words, words)

    @contextlib.contextmanager
    def _turn(self, dataset: str, *, at_once: bool = False) -> Iterator[Book]:
        book = self._books[dataset]
        if not book.lock.acquire(blocking=not at_once):
            raise BusyError
        try:
            yield book
        finally:
            book.lock.release()

    def spent(self, dataset: str) -> Spent:
        """What each sample has given away."""
        with self._turn(dataset) as book:
            return tabulate(book.words, book.info.samples, book.states.all)

    def tally(self, dataset: str) -> Tally:
        """What the samples have given away, in figures."""
        with self._turn(dataset) as book:
            return tally(book.words, book.info.samples, book.states.all, book.counts)

    def _move(self, book: Book, kind: str, ids: Int64[np.ndarray, " n"], charge: Charge) -> Ticket:
        """Charge all samples with the same, once for each state that they are in."""
        before = book.words[ids]
        sources, first, inverse = np.unique(
            before & ~LABEL_BIT, return_index=True, return_inverse=True
        )
        moved = [
            self._target(book, source, charge, int(ids[place]))
            for source, place in zip(sources.tolist(), first.tolist(), strict=True)
        ]
        after = np.array(moved, np.uint32)[inverse] | (before & LABEL_BIT)
        return self._commit(book, kind, ids, before, after)

    def _move_each(
        self, book: Book, kind: str, ids: Int64[np.ndarray, " n"], charges: list[Charge]
    ) -> Ticket:
        before = book.words[ids]
        moved = [
            self._target(book, source, charge, sample)
            for source, charge, sample in zip(
                (before & ~LABEL_BIT).tolist(), charges, ids.tolist(), strict=True
            )
        ]
        after = np.array(moved, np.uint32) | (before & LABEL_BIT)
        return self._commit(book, kind, ids, before, after)

    def _target(self, book: Book, source: int, charge: Charge, sample: int) -> int:
        """The state after a release; a refusal names the sample."""
        found = book.states.move(source, charge, budget=book.budget, max_bits=book.limits.max_bits)
        if isinstance(found, Exceeded):
            self._refuse(book, sample, book.states.all[source], found)
        return found

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
        folds = book.journal_rows + 1 >= JOURNAL_ROWS
        blocks = book.words.folded(ids, after) if folds else []
        states, rules = book.states.unwritten()

        def write(connection: sqlite3.Connection) -> None:
            write_states(connection, name, states)
            connection.executemany("INSERT OR IGNORE INTO functionals VALUES (?, ?, ?)", rules)
            if folds:
                fold(name, blocks, connection)
            else:
                connection.execute(
                    "INSERT INTO journal (dataset, ids, words) VALUES (?, ?, ?)", row
                )

        ticket = self._database.enqueue(write, last={name: partial(write_counts, name, counts)})
        # Not before: what memory has is taken for recorded, and a repeat of it is not charged.
        book.states.written()
        book.words[ids] = after
        book.journal_rows += 1
        if folds:
            book.journal_rows = 0
            book.words.unfolded.clear()
        return ticket

    def _refuse(self, book: Book, sample: int, state: State, exceeded: Exceeded) -> NoReturn:
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
