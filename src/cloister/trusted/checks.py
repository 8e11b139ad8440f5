"""Freivalds' check of a worker's answers: `<s, A x> = <A^T s, x>` modulo a 52-bit prime.

Both sums are accumulated by the native pass while it reads the reply and writes the next request
(cloister.ring.freivalds has the mathematics). Here the secret coefficients live, and here the two
sides are compared: the only way on is for them to be equal.
"""

import numpy as np
from jaxtyping import UInt64

from cloister.base.rng import Csprng
from cloister.errors import VerificationError
from cloister.plan.plan import Plan
from cloister.ring.freivalds import SOUNDNESS_BITS, CheckVectors, draw


class CheckBook:
    """Secret check vectors of every checked linear node; redrawn after any failure.

    Secret   all of it: a worker that knows `a` and `b` can forge answers
    """

    def __init__(self, plan: Plan, *, rng: Csprng) -> None:
        self._plan = plan
        self._rng = rng
        self._vectors: dict[int, CheckVectors] = {}
        self.redraw()

    def redraw(self) -> "Retired":
        """Draw new coefficients; the old ones are returned, to be erased when nobody uses them."""
        retired = Retired(tuple(self._vectors.values()))
        self._vectors = {
            index: draw(node.linear, rng=self._rng)
            for index, node in enumerate(self._plan.linear_nodes)
            if self._plan.protection_of(node).checked
        }
        return retired

    def vectors(self, index: int) -> CheckVectors | None:
        """The vectors of a linear node, None where the plan does not check it."""
        return self._vectors.get(index)

    def soundness_bits(self, index: int) -> float | None:
        """-log2 of the chance that one wrong answer passes; None where nothing is checked."""
        return SOUNDNESS_BITS if index in self._vectors else None


class Retired:
    """Coefficients that were replaced."""

    def __init__(self, vectors: tuple[CheckVectors, ...]) -> None:
        self._vectors = vectors

    def erase(self) -> None:
        """Overwrite them."""
        for vectors in self._vectors:
            vectors.erase()


def accept(
    answer_sums: UInt64[np.ndarray, " n"], request_sums: UInt64[np.ndarray, " n"], *, node: str
) -> None:
    """Let a node's answers pass, or raise.

    Domain   canonical residues modulo P52, one per input of the batch
    Error    a wrong answer passes with probability at most 3 / P52 < 2^-50
    Raises   VerificationError, which says only which node failed
    """
    if answer_sums.shape != request_sums.shape or not np.array_equal(answer_sums, request_sums):
        raise wrong_answer(node)


def wrong_answer(node: str) -> VerificationError:
    """The error for a node whose sums differ."""
    return VerificationError(
        f"node {node!r}: the worker's answer is wrong; nothing was released, the worker is "
        "quarantined"
    )
