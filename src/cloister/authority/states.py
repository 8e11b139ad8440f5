"""The releases of a sample: a state, shared by all samples with the same history.

A state counts two things. *Exact* forward functions are kept as a span, so that rows which follow
from earlier ones are free. *Opaque* releases (gradients, and functions too large to eliminate) are
charged by an upper bound of their rank, each name once. Their sum bounds the rank of everything
released, because a rank is subadditive. At the full dimension nothing is left to count.

States are numbered by data set; a sample holds only the number. A transition (state, function) is
computed once, however many samples take it.
"""

import sqlite3
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from cloister.authority.functions import MAX_ELIMINATION, Rows
from cloister.errors import EncryptionError
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.rank import Basis, rows_at_once

MAX_EXACT_ENTRIES = 1 << 24
"""Entries of a basis that is still eliminated exactly: 128 MiB."""
BASES_KEPT_BYTES = 1 << 26
"""Spans that are kept in memory; others are built again from the stored functions."""
TRANSITIONS_KEPT = 1 << 18
ROOT = 0


@dataclass(frozen=True)
class State:
    """One history: `digest` is what was released last, from state `parent`."""

    id: int
    parent: int
    digest: bytes
    exact: bool
    rank: int
    opaque: int
    bits: int
    operand: int

    @property
    def spent(self) -> int:
        """Upper bound of the rank of all functionals released."""
        return self.rank + self.opaque


@dataclass(frozen=True)
class Charge:
    """What one release costs a sample, beyond what its state holds.

    `linear` is given for functions that are counted exactly; `rank` is an upper bound otherwise.
    `values` is how many noisy values it has: each is charged whatever the span holds already.
    `shift` says on how many bits there is noise.
    """

    digest: bytes
    rank: int
    bits_each: int
    operand: int
    linear: LinearMap | None = None
    values: int = 0
    shift: int = 0


NOTHING = Charge(b"", rank=0, bits_each=0, operand=0)
"""Of a release to a sample that has given away everything."""


@dataclass(frozen=True)
class Exceeded:
    """A transition that the budget does not allow: the rank it would have needed, at least."""

    needed: int
    bits: int = 0


class States:
    """The states of one data set, in memory; new ones are collected in `fresh` to be written."""

    def __init__(self, *, dim: int, element_bits: int, modulus: int, noisy: bool = False) -> None:
        """noisy: values tell less than their functions; full rank does not give all away then."""
        self._noisy = noisy
        self.dim, self._nothing = dim, Basis.empty(dim, modulus=modulus)
        self._full_bits = dim * element_bits
        self.all: list[State] = [State(ROOT, ROOT, b"", False, 0, 0, 0, 0)]
        self.fresh: list[State] = []
        self._moves: dict[tuple[int, bytes], int | Exceeded] = {}
        self._merged: dict[tuple[bytes, int, int, int, frozenset[bytes]], int] = {}
        self._bases: OrderedDict[int, Basis] = OrderedDict()
        self._kept_bytes = 0
        self._functions: dict[bytes, LinearMap] = {}
        self.fresh_functions: list[bytes] = []
        self._full: int | None = None

    def restore(self, states: list[State], functions: dict[bytes, LinearMap]) -> None:
        """Take over what was stored.

        Raises   EncryptionError when it does not hang together
        """
        for state in states:
            if state.id != len(self.all) or not 0 <= state.parent < state.id:
                raise EncryptionError("ledger: its states are damaged; restore it from a backup")
            if state.exact and state.digest not in functions:
                raise EncryptionError("ledger: a function is missing; restore it from a backup")
            self.all.append(state)
            self._moves[state.parent, state.digest] = state.id
            if self.is_full(state):
                self._full = state.id
        self._functions = functions

    def is_full(self, state: State) -> bool:
        """Whether a sample in this state has nothing left to give away."""
        return state.spent >= self.dim and not self._noisy

    def move(
        self, source: int, charge: Charge, *, budget: int | None, max_bits: int | None
    ) -> int | Exceeded:
        """The state after a release; nothing is recorded when it exceeds the budget.

        Domain   the same budget and bits at every call
        """
        known = self.known(source, charge.digest)
        if known is not None:
            return known
        state = self.all[source]
        if charge.linear is None:
            found = self._add_opaque(state, charge, budget=budget, max_bits=max_bits)
        else:
            found = self._add_exact(state, charge, budget=budget, max_bits=max_bits)
        if len(self._moves) >= TRANSITIONS_KEPT:
            self._moves.clear()
        self._moves[source, charge.digest] = found
        return found

    def known(self, source: int, digest: bytes) -> int | Exceeded | None:
        """What `move` gave for a function's name before, or gives without any work."""
        if self.is_full(self.all[source]):
            return source
        return self._moves.get((source, digest))

    def _add_opaque(
        self, state: State, charge: Charge, *, budget: int | None, max_bits: int | None
    ) -> int | Exceeded:
        if charge.rank == 0 or charge.digest in self._opaque_names(state):
            return state.id
        needed = state.spent + charge.rank
        bits = state.bits + max(charge.rank, charge.values) * charge.bits_each
        if (budget is not None and needed > budget) or (max_bits is not None and bits > max_bits):
            return Exceeded(needed, bits)
        operand = max(state.operand, charge.operand)
        grown = (state.rank, state.opaque + charge.rank, bits, operand)
        return self._new(state, charge.digest, False, grown)

    def _add_exact(
        self, state: State, charge: Charge, *, budget: int | None, max_bits: int | None
    ) -> int | Exceeded:
        if charge.linear is None or (charge.values and charge.digest in self._names(state)):
            return state.id
        basis = self._basis(state)
        cap = None if budget is None else budget - state.opaque
        extended, added = _extend(basis, Rows(charge.linear), cap)
        bits = state.bits + max(added, charge.values) * charge.bits_each
        over = budget is not None and state.spent + added > budget
        if over or (max_bits is not None and bits > max_bits):
            return Exceeded(state.spent + added, bits)
        if added == 0 and not charge.values:
            return state.id
        operand = max(state.operand, charge.operand)
        names = self._opaque_names(state)
        if charge.values:
            # Histories that hold the same span are not alike: their noises differ.
            names = self._names(state) | {charge.digest}
        key = (extended.digest, state.opaque, bits, operand, names)
        found = self._merged.get(key)
        if found is None:
            self._functions[charge.digest] = charge.linear
            self.fresh_functions.append(charge.digest)
            grown = (extended.rank, state.opaque, bits, operand)
            found = self._new(state, charge.digest, True, grown)
            self._keep(found, extended)
            self._merged[key] = found
        return found

    def _new(
        self, parent: State, digest: bytes, exact: bool, grown: tuple[int, int, int, int]
    ) -> int:
        rank, opaque, bits, operand = grown
        if rank + opaque >= self.dim and not self._noisy:
            # All is given away: one state for every such history.
            if self._full is not None:
                return self._full
            rank, opaque, bits = self.dim, 0, self._full_bits
            self._full = len(self.all)
        if not self._noisy:
            bits = min(bits, self._full_bits)
        state = State(len(self.all), parent.id, digest, exact, rank, opaque, bits, operand)
        self.all.append(state)
        self.fresh.append(state)
        return state.id

    def _names(self, state: State) -> frozenset[bytes]:
        return frozenset(step.digest for step in self._history(state))

    def _opaque_names(self, state: State) -> frozenset[bytes]:
        return frozenset(step.digest for step in self._history(state) if not step.exact)

    def _history(self, state: State) -> list[State]:
        steps = []
        while state.id != ROOT:
            steps.append(state)
            state = self.all[state.parent]
        return steps[::-1]

    def _basis(self, state: State) -> Basis:
        found = self._bases.get(state.id)
        if found is not None:
            self._bases.move_to_end(state.id)
            return found
        basis = self._nothing
        for step in self._history(state):
            if step.exact:
                basis, _ = _extend(basis, Rows(self._functions[step.digest]), None)
        if basis.rank != state.rank:
            raise EncryptionError("ledger: a state's rank is damaged; restore it from a backup")
        self._keep(state.id, basis)
        return basis

    def _keep(self, state_id: int, basis: Basis) -> None:
        self._bases[state_id] = basis
        self._kept_bytes += basis.rows.nbytes
        while self._kept_bytes > BASES_KEPT_BYTES and len(self._bases) > 1:
            _, dropped = self._bases.popitem(last=False)
            self._kept_bytes -= dropped.rows.nbytes

    def unwritten(self) -> tuple[list[State], list[tuple[bytes, bytes, bytes]]]:
        """States and functions that are not written yet, until `written` is called."""
        functions = []
        for name in self.fresh_functions:
            linear = self._functions[name]
            weights = np.ascontiguousarray(linear.weights, "<i2").tobytes()
            functions.append((name, linear.geometry.to_bytes(), weights))
        return self.fresh, functions

    def written(self) -> None:
        """New states have been handed over to be written."""
        self.fresh, self.fresh_functions = [], []

    def forget(self) -> None:
        """Take back what is not written: its request was refused, and gave nothing away.

        Otherwise a request with one sample that may give no more would leave states for all others.
        """
        if not self.fresh:
            return
        first = self.fresh[0].id
        del self.all[first:]
        kept = {state.digest for state in self.all if state.exact}
        self._functions = {name: one for name, one in self._functions.items() if name in kept}
        self._moves = {
            move: found
            for move, found in self._moves.items()
            if isinstance(found, Exceeded) or found < first
        }
        self._merged = {key: found for key, found in self._merged.items() if found < first}
        for state in self.fresh:
            basis = self._bases.pop(state.id, None)
            self._kept_bytes -= 0 if basis is None else basis.rows.nbytes
        if self._full is not None and self._full >= first:
            self._full = None
        self.written()


def counted_exactly(rows: int, dim: int, budget: int) -> bool:
    """Whether the rank of a function is worked out, or bounded by its size."""
    entries = max(budget, 1) * dim
    return entries <= MAX_EXACT_ENTRIES and rows * entries <= MAX_ELIMINATION


def read_function(geometry: bytes, weights: bytes) -> LinearMap:
    """A stored function."""
    described = Geometry.from_bytes(geometry)
    values = np.frombuffer(weights, "<i2").reshape(described.weight_shape)
    return LinearMap(described, values.astype(np.int16))


def write_states(connection: sqlite3.Connection, dataset: str, states: list[State]) -> None:
    """Insert new states."""
    connection.executemany(
        "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (dataset, s.id, s.parent, s.digest, s.exact, s.rank, s.opaque, s.bits, s.operand)
            for s in states
        ],
    )


def read_states(connection: sqlite3.Connection, dataset: str) -> list[State]:
    """The stored states of a data set, by id."""
    rows = connection.execute(
        "SELECT id, parent, digest, exact, rank, opaque, bits, operand FROM states "
        "WHERE dataset = ? ORDER BY id",
        (dataset,),
    )
    return [State(i, p, d, bool(e), r, o, b, w) for i, p, d, e, r, o, b, w in rows]


def _extend(basis: Basis, rows: Rows, cap: int | None) -> tuple[Basis, int]:
    """Add rows block by block; as soon as the rank exceeds `cap`, the count is enough."""
    grown, step = basis, rows_at_once(basis.dim)
    for start in range(0, rows.count, step):
        block = rows.dense(start, min(start + step, rows.count))
        extended, added = grown.extend(block, cap=cap)
        if cap is not None and grown.rank + added > cap:
            return basis, grown.rank + added - basis.rank
        grown = extended
        if grown.rank == grown.dim:
            break
    return grown, grown.rank - basis.rank
