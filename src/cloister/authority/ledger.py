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
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import functions, noise
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
from cloister.authority.functions import Function
from cloister.authority.requests import Labels, LinearRequest
from cloister.authority.states import (
    NOTHING,
    Charge,
    Exceeded,
    counted_exactly,
    write_states,
)
from cloister.base.sqlite import Database, Ticket
from cloister.data.info import DatasetInfo
from cloister.errors import BudgetError, FunctionError

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

    def charge(self, request: LinearRequest, *, at_once: bool = False) -> Ticket:
        """Charge a key of any kind: whatever the server gets of samples passes here.

        at_once  do it now or not at all: what a new function costs may take seconds to find out
        Raises   BudgetError, FunctionError, EncryptionError; BusyError when it cannot be at once
        """
        ids = request.ids
        unique, first = np.unique(ids, return_index=True)
        with self._turn(request.dataset, at_once=at_once) as book, self._refusals_counted(book):
            charges, noises, fresh = [NOTHING], list[int](), list[Charge]()
            which = np.zeros(len(ids), np.int64)
            for function, places in request.functions():
                if book.budget is None and book.is_full(ids[places]):
                    continue
                if at_once and not book.knows(function.digest, unique):
                    raise BusyError
                _check_chosen(book, request, function)
                charge = book.charges.get(function.digest)
                if charge is None:
                    charge = _price(book, function)
                    fresh.append(charge)
                which[places] = len(charges)
                charges.append(charge)
                noises.append((1 << charge.shift) // 2)
            request.check_range(book.info, noises)
            # All functions are of a size that could be given away before a row is looked at.
            if fresh and book.budget is not None:
                functions.check_rows(book.info, request.cuts, request.rows)
            if request.kind == "forward":  # a gradient's functions are of one sample each
                _keep_prices(book, fresh)
            try:
                return self._move(book, request.kind, unique, charges, which[first])
            except Exception:
                book.states.forget()
                raise

    def charge_labels(self, request: Labels, *, at_once: bool = False) -> Ticket:
        """Record that labels are released to the server; see `charge`."""
        with self._turn(request.dataset, at_once=at_once) as book:
            before = book.words[request.ids]
            return self._commit(book, "labels", request.ids, before, before | LABEL_BIT)

    def count_trusted(self, dataset: str, *, at_once: bool = False) -> Ticket:
        """Record a release to the trusted runtime; see `charge`."""
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

    def _move(
        self,
        book: Book,
        kind: str,
        ids: Int64[np.ndarray, " n"],
        charges: Sequence[Charge],
        which: Int64[np.ndarray, " n"],
    ) -> Ticket:
        """Charge each sample with the charge of its number, once for all in the same state."""
        before = book.words[ids]
        cases = which << 32 | (before & ~LABEL_BIT)
        found, first, inverse = np.unique(cases, return_index=True, return_inverse=True)
        moved = [
            _target(book, case & (1 << 32) - 1, charges[case >> 32], int(ids[place]))
            for case, place in zip(found.tolist(), first.tolist(), strict=True)
        ]
        after = np.array(moved, np.uint32)[inverse] | (before & LABEL_BIT)
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

    @contextlib.contextmanager
    def _refusals_counted(self, book: Book) -> Iterator[None]:
        try:
            yield
        except (FunctionError, BudgetError):
            book.counts["requests"] += 1
            book.counts["refusals"] += 1
            name, counts = book.info.name, dict(book.counts)
            # Not waited for: a refusal gives nothing away.
            self._database.enqueue(last={name: partial(write_counts, name, counts)})
            raise


def _target(book: Book, source: int, charge: Charge, sample: int) -> int:
    """The state after a release.

    Raises   BudgetError naming the sample
    """
    found = book.states.move(source, charge, budget=book.budget, max_bits=book.limits.max_bits)
    if not isinstance(found, Exceeded):
        return found
    name, state = book.info.name, book.states.all[source]
    if book.budget is not None and found.needed > book.budget:
        raise BudgetError(
            f"data set {name}, sample {sample}: this key would bring the rank given away from "
            f"{state.spent} to at least {found.needed} of {book.info.dim}, allowed are "
            f"{book.budget}; use a frozen first layer or unmask to a trusted runtime"
        )
    raise BudgetError(
        f"data set {name}, sample {sample}: this key would bring the bits given away from "
        f"{state.bits} to {found.bits}, allowed are {book.limits.max_bits}; use fewer or "
        "coarser functions"
    )


def _price(book: Book, function: Function) -> Charge:
    """What a function costs a sample.

    Raises   BudgetError when it is more than may be given away of any sample
    """
    info, allowed, most = book.info, book.limits.value_bits, book.limits.max_bits
    shift = noise.shift(info, function, allowed)
    bits = allowed if shift else functions.value_bits(info, function)
    values = function.count if shift else 0
    if most is not None and values * bits > most:
        raise BudgetError(
            f"data set {info.name}: this key has {values} values of {bits} bits each: of rank, "
            f"allowed are {book.budget} of {info.dim}, and {most} bits of a sample in all; use a "
            "frozen first layer or unmask to a trusted runtime"
        )
    exact = book.budget is not None and counted_exactly(function.count, info.dim, book.budget)
    return Charge(
        function.digest,
        rank=function.rank,
        bits_each=bits,
        operand=function.operand,
        linear=function.linear if exact else None,
        values=values,
        shift=shift,
    )


def _keep_prices(book: Book, charges: Sequence[Charge]) -> None:
    """Keep what functions cost that were found admissible."""
    for charge in charges:
        if len(book.charges) >= CHARGES_KEPT:
            book.charges.pop(next(iter(book.charges)))
        book.charges[charge.digest] = charge


def _check_chosen(book: Book, request: LinearRequest, function: Function) -> None:
    """Refuse a second function, and gradients, where the data set gives values of one.

    Values of different functions on different samples are each within their sample's budget, and
    together tell the mean and the covariance of the data set: an attacker's best prior. Under one
    function for all, the directions it does not see stay unseen in every sample. The function is
    the one of the first key that was issued; the states on record tell it.

    Raises   BudgetError
    """
    if not book.limits.one_function:
        return
    name = book.info.name
    if request.kind == "gradient":
        raise BudgetError(
            f"data set {name}: gives the server values of one function and no gradients; "
            "use a frozen first layer or unmask to a trusted runtime"
        )
    chosen = {state.digest for state in book.states.all[1:]}
    if chosen and function.digest not in chosen:
        raise BudgetError(
            f"data set {name}: the server has values of another function already, and "
            f"this data set gives values of one function only (of rank {book.budget}: allowed are "
            f"{book.budget}); use the same projection, or unmask to a trusted runtime"
        )
