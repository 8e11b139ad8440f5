"""What a master key has given away, counted for back ends whose keys serve every ciphertext.

The key of y is a linear function of the master secret. With as many independent y as there are
coordinates the secret is the solution of a linear system, and everything ever encrypted under it
is open. So a master key carries the span of the functions it has made keys for, and `keygen`
charges before it makes one. What lies in the span is free: its values follow from values that
are out already. (Keys of `mask` are bound to samples; their ledger is `cloister.authority`.)

A count that is forgotten protects nothing: `keep` brings it to stable storage before a key leaves
(`published.keyfile`). Without it the count lives as long as the master key does, in memory.

What the count is not. It is per master key, not per sample, and of equations, not of information:
small integers may follow from fewer equations than unknowns (`cloister.authority.functions`), so
an owner who fears that gives a smaller budget. Element-wise keys open the entries they name, by
definition, and are not counted.
"""

import os
import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from cloister.base.rng import Csprng
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.ring.rank import Basis, random_modulus


@runtime_checkable
class Keep(Protocol):
    """Brings a master key with its count to stable storage (`published.keyfile` has one)."""

    def __call__(self, data: bytes, /, *, replaces: bytes | None) -> None:
        """Return once `data` is stored in the place of `replaces`, None for a new master key.

        Refuse when something else is stored there: then another copy of the master key counts too.
        """
        ...


class Released:
    """The span of the functions that keys were made for, and how large it may become.

    Secret   basis
    """

    def __init__(
        self,
        basis: Basis,
        *,
        budget: int,
        name: str,
        keep: Callable[[Basis, Basis], None] | None = None,
    ) -> None:
        """`name` of the back end begins the messages; `keep` is told of every growth, old and new.

        Raises   EncryptionError when more is released than the budget allows
        """
        if not basis.rank <= budget <= basis.dim:
            raise EncryptionError(
                f"{name} master key: a count of {basis.rank} functions and a budget of {budget} do "
                f"not fit its dimension {basis.dim}; restore it from its own file"
            )
        self.basis, self.budget = basis, budget
        self._name, self._keep = name, keep
        self._lock, self._process = threading.Lock(), os.getpid()

    @property
    def rank(self) -> int:
        """Independent functions released so far."""
        return self.basis.rank

    def charge(self, y: Int64[np.ndarray, "k dim"]) -> None:
        """Count functions as released, on stable storage where there is any.

        Raises   BudgetError, and then none of them is counted; EncryptionError in a fork, and what
                 `keep` raises: nothing may be released then
        """
        if os.getpid() != self._process:
            raise EncryptionError(
                f"{self._name} master key: a fork does not share its count; make keys in the "
                "process that opened it"
            )
        with self._lock:
            before = self.basis.rank
            grown, added = self.basis.extend(y, cap=self.budget)
            if before + added > self.budget:
                raise BudgetError(
                    f"{self._name}: this key would bring the independent functions given away from "
                    f"{before} to at least {before + added} of {self.basis.dim}, allowed are "
                    f"{self.budget}: with {self.basis.dim} all under this master key is open; ask "
                    "within their span, or encrypt anew under another master key"
                )
            if added:
                if self._keep is not None:
                    self._keep(self.basis, grown)
                self.basis = grown


def nothing(dim: int, *, rng: Csprng) -> Basis:
    """The span of a new master key, under a secret modulus of its own."""
    return Basis.empty(dim, modulus=random_modulus(rng=rng))


def stored_bytes(dim: int, rank: int) -> int:
    """Length of `Basis.to_bytes`."""
    return 8 * (3 + rank * (1 + dim))


def allowed(dim: int, budget: int | None, *, allow_unbounded_leakage: bool, name: str) -> int:
    """How many independent functions a new master key may release; by default all but the last.

    Raises   InputError
    """
    if allow_unbounded_leakage:
        if budget not in (None, dim):
            raise InputError(
                f"{name}: allow_unbounded_leakage=True has no budget; drop one of them"
            )
        return dim
    budget = dim - 1 if budget is None else budget
    if not 0 <= budget < dim:
        raise InputError(
            f"{name}: a budget is 0 to {dim - 1} functions on {dim} coordinates, got {budget}; "
            f"with {dim} every ciphertext is open, which needs allow_unbounded_leakage=True"
        )
    return budget
