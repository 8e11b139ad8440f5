"""Freivalds' check of a worker's answers: `<s, A x> = <A^T s, x>` modulo a 52-bit prime.

cloister.ring.freivalds has the mathematics. This module holds the secret coefficients and the only
three functions that open a worker's reply:

    accept             its values, once both sums were compared
    accept_unchecked   its values as they are, for what the plan declares open
    for_native         its memory, for the native executor, which compares both sums while it reads
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt64

from cloister.base.rng import Csprng
from cloister.errors import PlanError, VerificationError
from cloister.plan.plan import Plan
from cloister.plan.protection import Protection
from cloister.ring.freivalds import SOUNDNESS_BITS, CheckVectors, draw
from cloister.wire.messages import Unchecked

T = TypeVar("T")
V = TypeVar("V")


class Checks:
    """Secret check vectors of every checked linear node; drawn anew after any failure.

    Secret   all of it: a worker that knows `a` and `b` can forge answers
    """

    def __init__(self, plan: Plan, *, rng: Csprng) -> None:
        self._vectors = {
            index: draw(node.linear, rng=rng)
            for index, node in enumerate(plan.linear_nodes)
            if plan.protection_of(node).checked
        }

    def vectors(self, index: int) -> CheckVectors | None:
        """The vectors of a linear node, None where the plan does not check it."""
        return self._vectors.get(index)

    def soundness_bits(self, index: int) -> float | None:
        """-log2 of the chance that one wrong answer passes; None where nothing is checked."""
        return SOUNDNESS_BITS if index in self._vectors else None

    def erase(self) -> None:
        """Overwrite all vectors, once nothing uses them any more."""
        for vectors in self._vectors.values():
            vectors.erase()


class Accepted(Generic[T]):
    """What a worker sent and `accept` or `accept_unchecked` let pass."""

    __slots__ = ("values",)

    def __init__(self, values: T) -> None:
        self.values = values


def accept(
    reply: Unchecked[T],
    read: Callable[[T], tuple[V, UInt64[np.ndarray, " n"]]],
    request_sums: UInt64[np.ndarray, " n"],
    *,
    node: str,
) -> Accepted[V]:
    """The values of a node's answer, or an error.

    `read` reads each word of the reply once, and returns the values with their sums.

    Domain   sums are canonical residues modulo P52, one per input of the batch
    Error    a wrong answer passes with probability at most 3 / P52 < 2^-50
    Raises   VerificationError, which says only which node failed
    """
    values, answer_sums = read(reply.expose_unchecked())
    if answer_sums.shape != request_sums.shape or not np.array_equal(answer_sums, request_sums):
        raise wrong_answer(node)
    return Accepted(values)


def accept_unchecked(reply: Unchecked[T], *, protection: Protection, node: str) -> Accepted[T]:
    """A reply as it came, of a node that the plan leaves to a worker unchecked.

    Raises   PlanError for any other node
    """
    if protection.checked or not protection.on_worker:
        raise PlanError(f"node {node!r} is {protection.name}: no answer is accepted unchecked")
    return Accepted(reply.expose_unchecked())


def for_native(reply: Unchecked[np.ndarray]) -> np.ndarray:
    """A reply's memory, as an argument of the native executor alone.

    The native executor reads every word once. It refuses a step without coefficients for the
    answer of a checked node, and it stops where the sums differ.
    """
    return reply.expose_unchecked()


def wrong_answer(node: str, *, beside: str = "") -> VerificationError:
    """The error for a node whose sums differ; `beside` the worker's answer, what may be wrong."""
    if not beside:
        return VerificationError(
            f"node {node!r}: the worker's answer is wrong; nothing was released, the worker is "
            "quarantined"
        )
    return VerificationError(
        f"node {node!r}: the worker's answer is wrong, or {beside}, and which of them cannot be "
        "told; nothing was released, all that may be at fault are quarantined"
    )
