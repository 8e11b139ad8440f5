"""The ledger: the releases of every sample, charged before a key leaves.

A request moves the words of its samples (`cloister.authority.account`), all or none; the move is
one row of a journal, and the answer leaves when the row is on stable storage. From time to time the
words that changed are written as they are and the journal starts anew. A request sees charges of
earlier requests before they are on the disk, so that no two requests spend the same budget. While
the disk fails, the authority issues no key. Data sets have a lock each and never wait for each
other.

`cloister.authority.functions` has the price of a move, `cloister.authority.states` the states.
Releases to the trusted runtime are counted and not charged.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Int64, UInt32

from cloister.authority import functions, label_sums, noise
from cloister.authority.account import (
    Account,
    LedgerLimits,
    Spent,
    Tally,
    new_account,
    read_account,
    tabulate,
    write_counts,
    write_evaluation,
)
from cloister.authority.database import Database, PendingCommit
from cloister.authority.functions import Function
from cloister.authority.requests import Evaluation, Labels, LinearRequest
from cloister.authority.states import (
    NOTHING,
    Charge,
    Exceeded,
    counted_exactly,
    write_states,
)
from cloister.authority.words import LABEL_BIT, fold
from cloister.data.info import DatasetInfo
from cloister.errors import BudgetError, FunctionError

JOURNAL_ROWS = 2048
"""Rows after which the words are written as a whole."""
CHARGES_KEPT = 16
"""Prices of functions that are kept: servers ask for the same one sample after sample."""


class NotAtOnceError(Exception):
    """A charge cannot be made at once: it has to be worked out, or wait for another one."""


class Ledger:
    """The accounts of all data sets; the caller alone writes them (`Authority` sees to it)."""

    def __init__(self, database: Database, *, modulus: int) -> None:
        self._database, self._modulus = database, modulus
        self._accounts: dict[str, Account] = {}

    def read_account(self, info: DatasetInfo, *, limits: LedgerLimits) -> None:
        """Read a data set's account as it is stored.

        Raises   EncryptionError when it is damaged
        """
        with self._database.reading() as connection:
            self._accounts[info.name] = read_account(
                connection, info, limits=limits, modulus=self._modulus
            )

    def new_account(self, info: DatasetInfo, *, limits: LedgerLimits) -> Account:
        """An empty account, for `open_account`."""
        return new_account(info, limits=limits, modulus=self._modulus)

    def open_account(self, account: Account) -> None:
        """From now on, charge requests for its data set."""
        self._accounts[account.info.name] = account

    def grow(self, info: DatasetInfo) -> None:
        """A data set has more samples now."""
        with self._turn(info.name) as account:
            account.info = info

    def charge(self, request: LinearRequest, *, at_once: bool = False) -> PendingCommit:
        """Charge a key of any kind: every release of samples to the server passes here.

        at_once  do it now or not at all: the price of a new function may take seconds to compute
        Raises   BudgetError, FunctionError, EncryptionError; with at_once NotAtOnceError
        """
        ids = request.ids
        unique, first = np.unique(ids, return_index=True)
        with (
            self._turn(request.dataset, at_once=at_once) as account,
            self._refusals_counted(account),
        ):
            charges, noises, fresh = [NOTHING], list[int](), list[Charge]()
            which = np.zeros(len(ids), np.int64)
            for function, places in request.functions():
                if account.budget is None and account.is_full(ids[places]):
                    continue
                if at_once and not account.knows(function.digest, unique):
                    raise NotAtOnceError
                _check_chosen(account, request, function)
                charge = account.charges.get(function.digest)
                if charge is None:
                    charge = _price(account, function)
                    fresh.append(charge)
                which[places] = len(charges)
                charges.append(charge)
                noises.append((1 << charge.shift) // 2)
            request.check_range(account.info, noises)
            # All functions are of a size that could be given away before a row is looked at.
            if fresh and account.budget is not None:
                functions.check_rows(account.info, request.cuts, request.rows)
            if request.kind == "forward":  # a gradient's functions are of one sample each
                _keep_prices(account, fresh)
            try:
                return self._move(account, request.kind, unique, charges, which[first])
            except Exception:
                account.states.forget()
                raise

    def charge_labels(self, request: Labels, *, at_once: bool = False) -> PendingCommit:
        """Record that labels are released to the server; see `charge`."""
        with self._turn(request.dataset, at_once=at_once) as account:
            before = account.words[request.ids]
            return self._commit(account, "labels", request.ids, before, before | LABEL_BIT)

    def charge_evaluation(self, request: Evaluation, *, at_once: bool = False) -> PendingCommit:
        """Charge a sum over labels, each once; see `charge`.

        Exact sums, of which a server gets any number, tell every label: they count as given.

        Raises   BudgetError, FunctionError
        """
        with (
            self._turn(request.dataset, at_once=at_once) as account,
            self._refusals_counted(account),
        ):
            name, allowed = account.info.name, account.limits.evaluations
            is_new = request.digest not in account.evaluations
            if allowed is None:
                before = account.words[request.ids]
                return self._commit(account, "evaluation", request.ids, before, before | LABEL_BIT)
            label_sums.check(account.info, request)
            if is_new and len(account.evaluations) >= allowed:
                raise BudgetError(
                    f"data set {name}: its labels go to a trusted runtime only, and of the "
                    f"{allowed} sums over labels that its owner allows a server (--evaluations) "
                    "none is left"
                )
            account.counts["requests"] += 1
            account.counts["evaluation"] += 1
            if not is_new:
                return self._database.latest()
            commit = self._database.enqueue(
                partial(write_evaluation, name, request.digest),
                last={name: partial(write_counts, name, dict(account.counts))},
            )
            account.evaluations.add(request.digest)
            return commit

    def count_trusted(self, dataset: str, *, at_once: bool = False) -> PendingCommit:
        """Record a release to the trusted runtime; see `charge`."""
        with self._turn(dataset, at_once=at_once) as account:
            empty = np.empty(0, np.int64)
            words = np.empty(0, np.uint32)
            return self._commit(account, "trusted", empty, words, words)

    @contextlib.contextmanager
    def _turn(self, dataset: str, *, at_once: bool = False) -> Iterator[Account]:
        account = self._accounts[dataset]
        if not account.lock.acquire(blocking=not at_once):
            raise NotAtOnceError
        try:
            yield account
        finally:
            account.lock.release()

    def spent(self, dataset: str) -> Spent:
        """What each sample has given away."""
        with self._turn(dataset) as account:
            return tabulate(account.words, account.info.samples, account.states.all)

    def tally(self, dataset: str) -> Tally:
        """The releases of the samples, in figures."""
        with self._turn(dataset) as account:
            return account.tally(account.info.samples)

    def _move(
        self,
        account: Account,
        kind: str,
        ids: Int64[np.ndarray, " n"],
        charges: Sequence[Charge],
        which: Int64[np.ndarray, " n"],
    ) -> PendingCommit:
        """Charge each sample with the charge of its number, once for all in the same state."""
        before = account.words[ids]
        cases = which << 32 | (before & ~LABEL_BIT)
        found, first, inverse = np.unique(cases, return_index=True, return_inverse=True)
        moved = [
            _target(account, case & (1 << 32) - 1, charges[case >> 32], int(ids[place]))
            for case, place in zip(found.tolist(), first.tolist(), strict=True)
        ]
        after = np.array(moved, np.uint32)[inverse] | (before & LABEL_BIT)
        return self._commit(account, kind, ids, before, after)

    def _commit(
        self,
        account: Account,
        kind: str,
        ids: Int64[np.ndarray, " n"],
        before: UInt32[np.ndarray, " n"],
        after: UInt32[np.ndarray, " n"],
    ) -> PendingCommit:
        """Record a move, when there is one; a commit for it and for all moves before it."""
        account.counts["requests"] += 1
        account.counts[kind] += 1
        moved = before != after
        name, counts = account.info.name, dict(account.counts)
        if not moved.any() and kind != "trusted":
            # Nothing new is released; the charge that it repeats may not be on the disk yet.
            # Counters follow with the next move.
            return self._database.latest()
        if not moved.any():
            return self._database.enqueue(last={name: partial(write_counts, name, counts)})
        row = (name, ids[moved].astype("<i8").tobytes(), after[moved].astype("<u4").tobytes())
        folds = account.journal_rows + 1 >= JOURNAL_ROWS
        blocks = account.words.folded(ids, after) if folds else []
        states, rules = account.states.unwritten()

        def write(connection: sqlite3.Connection) -> None:
            write_states(connection, name, states)
            connection.executemany("INSERT OR IGNORE INTO functionals VALUES (?, ?, ?)", rules)
            if folds:
                fold(name, blocks, connection)
            else:
                connection.execute(
                    "INSERT INTO journal (dataset, ids, words) VALUES (?, ?, ?)", row
                )

        commit = self._database.enqueue(write, last={name: partial(write_counts, name, counts)})
        # Not before: what memory has is taken for recorded, and a repeat of it is not charged.
        account.states.written()
        account.words[ids] = after
        account.journal_rows += 1
        if folds:
            account.journal_rows = 0
            account.words.unfolded.clear()
        return commit

    @contextlib.contextmanager
    def _refusals_counted(self, account: Account) -> Iterator[None]:
        try:
            yield
        except (FunctionError, BudgetError):
            account.counts["requests"] += 1
            account.counts["refusals"] += 1
            name, counts = account.info.name, dict(account.counts)
            # Not waited for: a refusal gives nothing away.
            self._database.enqueue(last={name: partial(write_counts, name, counts)})
            raise


def _target(account: Account, source: int, charge: Charge, sample: int) -> int:
    """The state after a release.

    Raises   BudgetError naming the sample
    """
    found = account.states.move(
        source, charge, budget=account.budget, max_bits=account.limits.max_bits
    )
    if not isinstance(found, Exceeded):
        return found
    name, state = account.info.name, account.states.all[source]
    if account.budget is not None and found.needed > account.budget:
        raise BudgetError(
            f"data set {name}, sample {sample}: this key would bring the rank given away from "
            f"{state.spent} to at least {found.needed} of {account.info.dim}, allowed are "
            f"{account.budget}; use a frozen first layer or unblind to a trusted runtime"
        )
    raise BudgetError(
        f"data set {name}, sample {sample}: this key would bring the bits given away from "
        f"{state.bits} to {found.bits}, allowed are {account.limits.max_bits}; use fewer or "
        "coarser functions"
    )


def _price(account: Account, function: Function) -> Charge:
    """The price of a function for a sample.

    Raises   BudgetError when it is more than may be given away of any sample
    """
    info, allowed, most = account.info, account.limits.value_bits, account.limits.max_bits
    shift = noise.shift(info, function, allowed)
    bits = allowed if shift else functions.value_bits(info, function)
    values = function.count if shift else 0
    if most is not None and values * bits > most:
        raise BudgetError(
            f"data set {info.name}: this key has {values} values of {bits} bits each: of rank, "
            f"allowed are {account.budget} of {info.dim}, and {most} bits of a sample in all; use "
            "a frozen first layer or unblind to a trusted runtime"
        )
    exact = account.budget is not None and counted_exactly(function.count, info.dim, account.budget)
    return Charge(
        function.digest,
        rank=function.rank,
        bits_each=bits,
        operand=function.operand,
        linear=function.linear if exact else None,
        values=values,
        shift=shift,
    )


def _keep_prices(account: Account, charges: Sequence[Charge]) -> None:
    """Keep what functions cost that were found admissible."""
    for charge in charges:
        if len(account.charges) >= CHARGES_KEPT:
            account.charges.pop(next(iter(account.charges)))
        account.charges[charge.digest] = charge


def _check_chosen(account: Account, request: LinearRequest, function: Function) -> None:
    """Refuse a second function, and gradients, where the data set gives values of one.

    Values of different functions on different samples are each within their sample's budget, and
    together tell the mean and the covariance of the data set: an attacker's best prior. Under one
    function for all, the directions it does not see stay unseen in every sample. The function is
    the one of the first key that was issued; the states on record tell it.

    Raises   BudgetError
    """
    if not account.limits.one_function:
        return
    name = account.info.name
    if request.kind == "gradient":
        raise BudgetError(
            f"data set {name}: gives the server values of one function and no gradients; "
            "use a frozen first layer or unblind to a trusted runtime"
        )
    chosen = {state.digest for state in account.states.all[1:]}
    if chosen and function.digest not in chosen:
        raise BudgetError(
            f"data set {name}: the server has values of another function already, and "
            f"this data set gives values of one function only (of rank {account.budget}: allowed "
            f"are {account.budget}); use the same projection, or unblind to a trusted runtime"
        )
