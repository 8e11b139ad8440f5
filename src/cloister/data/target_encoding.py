"""The targets of samples, what a model has to learn, as the integers that are encrypted.

    classes   one-hot: 1 for the sample's class
    labels    1 for each label that the sample has
    numbers   q with y = middle + half q / 32767, of the number's public range middle -+ half

A target has one integer for each class, label or number of the data set. A server that unblinds
numbers learns q / 32767, from -1 to 1, and neither the range nor the unit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

from cloister.data.encoding import Encoding
from cloister.data.info import Targets
from cloister.errors import InputError, RangeError

NUMBER_BITS = 16
NUMBER_BOUND = 2 ** (NUMBER_BITS - 1) - 1

Ranges = Mapping[str, tuple[float, float]]
"""Smallest and largest value by name."""


def number_encoding(low: float, high: float) -> Encoding:
    """The encoding of a number with a public range.

    Raises   RangeError
    """
    return Encoding.for_range(low, high, bits=NUMBER_BITS)


def are_targets(integers: Int[np.ndarray, "n classes"], targets: Targets) -> Bool[np.ndarray, " n"]:
    """Which rows of integers are targets of a kind."""
    if targets == "numbers":
        return np.asarray((np.abs(integers.astype(np.int64)) <= NUMBER_BOUND).all(axis=1))
    rows: Bool[np.ndarray, " n"] = ((integers == 0) | (integers == 1)).all(axis=1)
    return rows if targets == "labels" else rows & (integers.sum(axis=1) == 1)


def one_hot(numbers: Int[np.ndarray, " n"], classes: int) -> Int32[np.ndarray, "n classes"]:
    """The targets of class numbers."""
    out = np.zeros((len(numbers), classes), np.int32)
    out[np.arange(len(numbers)), numbers] = 1
    return out


@dataclass(frozen=True, eq=False)
class TargetEncoder:
    """From the labels of a source to the integers of a data set.

    labels      as a source has them; None: unlabelled samples, whose targets are zeros
    names       of the data set's numbers, for errors
    positions   the data set's position of each class, label or number of the source
    encodings   of the data set's numbers
    where       names a sample in errors

    Secret   labels
    """

    targets: Targets
    classes: int
    labels: Int64[np.ndarray, "n ..."] | Float64[np.ndarray, "n k"] | None
    positions: Int64[np.ndarray, " k"]
    names: tuple[str, ...] = ()
    encodings: tuple[Encoding, ...] = ()
    where: Callable[[int], str] = "sample {}".format

    def encode(self, samples: Int64[np.ndarray, " m"]) -> Int32[np.ndarray, "m classes"]:
        """The targets of some samples.

        Raises   RangeError naming sample and number
        """
        if self.labels is None:
            return np.zeros((len(samples), self.classes), np.int32)
        labels = self.labels[samples]
        if self.targets == "classes":
            return one_hot(self.positions[labels], self.classes)
        out = np.zeros((len(samples), self.classes), np.int32)
        if self.targets == "labels":
            out[:, self.positions] = labels
            return out
        for column, position in enumerate(self.positions.tolist()):
            out[:, position] = self._numbers(samples, labels[:, column], position)
        return out

    def _numbers(
        self, samples: Int64[np.ndarray, " m"], values: Float64[np.ndarray, " m"], position: int
    ) -> Int[np.ndarray, " m"]:
        encoding = self.encodings[position]
        # The ends of a range have a rounding error of their own.
        slack = encoding.resolution
        bad = ~((values >= encoding.low - slack) & (values <= encoding.high + slack))
        if bad.any():
            where = self.where(int(samples[int(np.argmax(bad))]))
            raise RangeError(
                f"{where}, number {self.names[position]}: the value is outside the data set's "
                "range; drop the sample, or make the data set with wider --target-ranges"
            )
        return encoding.encode(np.clip(values, encoding.low, encoding.high))


def check_target_ranges(names: tuple[str, ...], ranges: Ranges) -> None:
    """Refuse ranges that do not name every number, or with an end that is none.

    Raises   InputError naming the number
    """
    for name in names:
        if name not in ranges:
            raise InputError(f"number {name}: has no range; give it in --target-ranges")
    for name, (low, high) in ranges.items():
        if name not in names:
            raise InputError(
                f"--target-ranges: {name} is not one of the numbers {', '.join(names)}"
            )
        if not (np.isfinite([low, high]).all() and low < high):
            raise InputError(
                f"number {name}: its range needs low < high, got {low:g} to {high:g}; give a "
                "wider one in --target-ranges"
            )
