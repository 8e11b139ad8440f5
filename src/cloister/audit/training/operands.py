"""Demonstrations that need no mathematics: packed keys, answers to label requests.

Because of these three a ledger is not enough: the *kind* of function must be restricted too.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from cloister.errors import InputError


def is_separable(weights: Sequence[int], *, low: int, high: int) -> bool:
    """Whether one answer names every operand: each weight outreaches the sum of all below it.

    The classical superincreasing test with the operands' range; zeros are left out. One non-zero
    weight is separable: it is the pixel itself.
    """
    reach = 0
    for weight in sorted(abs(w) for w in weights if w):
        if weight <= reach:
            return False
        reach += weight * (high - low)
    return True


def unpack(weights: Sequence[int], answer: int, *, low: int, high: int) -> Int64[np.ndarray, " n"]:
    """The operands behind one answer of a separable functional, largest weight first.

    Raises   InputError when the functional is not separable or the answer is out of its range
    """
    if not is_separable(weights, low=low, high=high):
        raise InputError("audit: the weights are not separable; one answer does not name operands")
    found = np.full(len(weights), low, np.int64)
    # Counted from the low end, every operand is 0..high - low and every weight positive.
    rest = answer
    for weight in weights:
        rest -= weight * (low if weight > 0 else high)
    for i in sorted((i for i, w in enumerate(weights) if w), key=lambda i: -abs(weights[i])):
        digit, rest = divmod(rest, abs(weights[i]))
        if not 0 <= digit <= high - low:
            raise InputError("audit: the answer is outside the results of operands in this range")
        found[i] = low + digit if weights[i] > 0 else high - digit
    if rest:
        raise InputError("audit: the answer is outside the results of operands in this range")
    return found


def read_label(answers: Int64[np.ndarray, "n classes"]) -> Int64[np.ndarray, " n"]:
    """Labels from P - Y or from Y: the only negative entry, else the largest one.

    With predictions P between 0 and 1, P - Y is negative exactly where Y is one.
    """
    lowest, highest = answers.argmin(axis=1), answers.argmax(axis=1)
    labels: Int64[np.ndarray, " n"] = np.where(answers.min(axis=1) < 0, lowest, highest)
    return labels
