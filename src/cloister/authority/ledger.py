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
from jaxtyping import Int64, UInt32

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
from cloister.authority.functions import Function
from cloister.authority.requests import Request
from cloister.authority.states import (
    MAX_EXACT_ENTRIES,
    NOTHING,
    Charge,
    Exceeded,
    State,
    write_states,
)
from cloister.errors import BudgetError, FunctionError
from cloister.fe.keyservice import DatasetInfo

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

    def charge(
        self,
        dataset: str,
        ids: Int64[np.ndarray, " n"],
        request: Request,
        *,
        at_once: bool = False,
    ) -> Ticket:
        """Charge a key of any kind: whatever the server gets of samples passes here.

        at_once  do it now or not at all: what a new function costs may take seconds to find out
        Raises   BudgetError, FunctionError, EncryptionError; BusyError when it cannot be at once
        """
        with self._turn(at_once=at_once):
            book = self._books[dataset]
            unique, first = np.unique(ids, return_index=True)
            charges, noises = [NOTHING] * len(ids), []
            for function, places in request.functions():
                if book.budget is None and book.is_full(ids[places]):
                    continue
                if at_once and not book.knows(function.digest, unique):
                    raise BusyError
                charge = self._admit(book, request, function)
                noises.append((1 << charge.shift) // 2)
                for place in places.tolist():
                    charges[place] = charge
            self._count_refusal(book, lambda: request.check_range(book.info, noises))
            return self._move(book, request.kind, unique, [charges[i] for i in first.tolist()])

    def _admit(self, book: Book, request: Request, function: Function) -> Charge:
        """What a function costs a sample, kept once it has been found admissible."""
        info = book.info
        self._count_refusal(book, lambda: _check_chosen(book, request, function))
        known = book.charges.get(function.digest)
        if known is not None:
            return known
        if book.budget is not None:
            self._count_refusal(book, lambda: functions.check_rows(info, function))
        exact = book.budget is not None and max(book.budget, 1) * info.dim <= MAX_EXACT_ENTRIES
        allowed = book.limits.value_bits
        shift = blur.shift(info, function, allowed)
        charge = Charge(
            function.digest,
            rank=function.rank,
            bits_each=allowed if shift else functions.value_bits(info, function),
            operand=function.operand,
            linear=function.linear if exact else None,
            values=function.count if shift else 0,
            shift=shift,
        )
        if function.linear is None:
            return charge  # of one sample: nobody asks for it of another one
        if len(book.charges) >= CHARGES_KEPT:
            book.charges.pop(next(iter(book.charges)))
        book.charges[function.digest] = charge
        return charge

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


def _check_chosen(book: Book, request: Request, function: Function) -> None:
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
