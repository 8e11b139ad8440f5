"""One evaluation of one operator, which the functions of the operator table receive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


class NotCovered(Exception):  # noqa: N818  (a signal inside the package, never seen outside)
    """The operator's table entry does not define this variant; ONNX Runtime does."""


@dataclass(frozen=True)
class Call:
    """Operator inputs (None: absent), attributes, wanted number of outputs, operator set."""

    inputs: Sequence[np.ndarray | None]
    attributes: Mapping[str, object]
    outputs: int
    opset: int

    @property
    def x(self) -> np.ndarray:
        """The first input."""
        return self.required(0)

    def required(self, index: int) -> np.ndarray:
        """An input that must be there."""
        array = self.optional(index)
        if array is None:
            raise NotCovered(f"input {index} is absent")
        return array

    def optional(self, index: int) -> np.ndarray | None:
        """An input, None when absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def number(self, name: str, default: float) -> float:
        """A number attribute."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def text(self, name: str, default: str) -> str:
        """A text attribute."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers, None when absent."""
        value = self.attributes.get(name)
        return tuple(int(v) for v in value) if isinstance(value, Sequence) else None

    def integers_at(self, index: int, name: str) -> tuple[int, ...] | None:
        """Integers that older operator sets pass as attribute `name`, newer ones as an input."""
        array = self.optional(index)
        if array is not None:
            return tuple(int(v) for v in array.reshape(-1))
        return self.integers(name)
