"""The releases of a master key, counted for back ends whose keys serve every ciphertext.

The key of y is a linear function of the master secret. With as many independent y as there are
coordinates the secret is the solution of a linear system, and everything ever encrypted under it
is open. So a master key carries the span of the functions it has made keys for, and `keygen`
charges before it makes one. A function in the span is free: its values follow from values that were
released already. (Keys of `mask` are bound to samples; their ledger is `cloister.authority`.)

Limits of the count. It lives as long as the master key does, in memory. It counts per master key,
not per sample, and equations, not information: small integers may follow from fewer equations than
unknowns (`cloister.authority.functions`), so an owner who fears that gives a smaller budget.
Element-wise keys open the entries they name, by definition, and are not counted.
"""

import threading

import numpy as np
from jaxtyping import Int64

from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng
from cloister.errors import BudgetError, EncryptionError, InputError
from cloister.ring.rank import Basis, random_modulus


class Released:
    """The span of the functions that keys were made for, and how large it may become.

    Secret   basis
    """

    def __init__(
        self,
        dim: int,
        *,
        budget: int | None,
        allow_unbounded_leakage: bool,
        name: str,
        rng: Csprng,
    ) -> None:
        """Nothing is released yet; the secret modulus of the count is drawn from `rng`.

        budget   independent functions that may be released; None: all but the last
        name     of the back end: begins the messages

        Raises   InputError
        """
        self.budget = _allowed(dim, budget, unbounded=allow_unbounded_leakage, name=name)
        self.basis = Basis.empty(dim, modulus=random_modulus(rng=rng))
        self._name = name
        self._lock, self._process = threading.Lock(), this_process()

    @property
    def rank(self) -> int:
        """Independent functions released so far."""
        return self.basis.rank

    def charge(self, y: Int64[np.ndarray, "k dim"]) -> None:
        """Count functions as released.

        Raises   BudgetError, and then none of them is counted; EncryptionError in a fork: nothing
                 may be released then
        """
        if this_process() != self._process:
            raise EncryptionError(
                f"{self._name} master key: a fork does not share its count; make keys in the "
                "process that made it"
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
            self.basis = grown


def _allowed(dim: int, budget: int | None, *, unbounded: bool, name: str) -> int:
    """How many independent functions a new master key may release; by default all but the last."""
    if unbounded:
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
