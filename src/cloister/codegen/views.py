"""Values as the generated C sees them: a buffer, and the steps between neighbours on each axis.

Transpose, Slice, Split, Squeeze, Unsqueeze and Expand are other views of the same buffer and cost
nothing. Images are channels-last because the step of their channel axis is one; no other code
knows of layouts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Shape = tuple[int, ...]
C_TYPES = {"float32": "float", "int32": "int32_t", "int64": "int64_t", "bool": "uint8_t"}


@dataclass(frozen=True, eq=False)
class Buffer:
    """Memory for numbers of one type; what it is for decides where it lies."""

    dtype: np.dtype
    elements: int

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class View:
    """Elements of a buffer as an array: `steps` are in elements and may be zero or negative."""

    buffer: Buffer
    shape: Shape
    steps: Shape
    start: int = 0

    @property
    def c_type(self) -> str:
        """The element type in C."""
        return C_TYPES[self.buffer.dtype.name]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def order(self) -> Shape:
        """Axes from the largest step to the smallest."""
        return tuple(sorted(range(len(self.shape)), key=lambda axis: -abs(self.steps[axis])))

    def is_dense(self, order: Sequence[int] | None = None) -> bool:
        """Whether its elements follow each other without gaps in this order of axes."""
        wanted = dense_steps(self.shape, order)
        return all(
            size == 1 or step == want
            for size, step, want in zip(self.shape, self.steps, wanted, strict=True)
        )

    def transposed(self, axes: Sequence[int]) -> "View":
        """Axes in another order."""
        shape = tuple(self.shape[axis] for axis in axes)
        return replace(self, shape=shape, steps=tuple(self.steps[axis] for axis in axes))

    def rows(self, axis: int, start: int, count: int, step: int = 1) -> "View":
        """Every step-th row of an axis."""
        shape, steps = list(self.shape), list(self.steps)
        shape[axis], steps[axis] = count, steps[axis] * step
        begin = self.start + start * self.steps[axis]
        return View(self.buffer, tuple(shape), tuple(steps), begin)

    def broadcast(self, shape: Shape) -> "View":
        """Repeated to a shape, as NumPy's broadcasting does."""
        new = len(shape) - len(self.shape)
        own = zip(self.shape, self.steps, shape[new:], strict=True)
        steps = (0,) * new + tuple(0 if size != want else step for size, step, want in own)
        return replace(self, shape=shape, steps=steps)

    def reshaped(self, shape: Shape) -> "View | None":
        """The same elements in row-major order with another shape; None where that needs a copy."""
        groups = _merged(self)
        steps: list[int] = []
        for size in reversed(shape):
            if size == 1:
                steps.append(0)
                continue
            while groups and groups[-1][0] == 1:
                groups.pop()
            if not groups or groups[-1][0] % size:
                return None
            have, step = groups[-1]
            steps.append(step)
            groups[-1] = (have // size, step * size)
        return replace(self, shape=shape, steps=tuple(reversed(steps)))


def dense_steps(shape: Shape, order: Sequence[int] | None = None) -> Shape:
    """Steps of an array without gaps whose axes lie in this order, the last one closest."""
    steps, step = [0] * len(shape), 1
    for axis in reversed(range(len(shape)) if order is None else order):
        steps[axis] = step
        step *= shape[axis]
    return tuple(steps)


def channels_last(rank: int) -> Shape:
    """The order of axes of an image (N, C, ...) whose channels are closest."""
    return (0, *range(2, rank), 1)


def dense(dtype: np.dtype, shape: Shape, order: Sequence[int] | None = None) -> View:
    """A view of all of a new buffer."""
    return View(Buffer(dtype, math.prod(shape)), shape, dense_steps(shape, order))


def _merged(view: View) -> list[tuple[int, int]]:
    """(size, step) of runs of axes that one loop can go through."""
    groups: list[tuple[int, int]] = []
    for size, step in zip(view.shape, view.steps, strict=True):
        if size == 1:
            continue
        if groups and groups[-1][1] == step * size:
            groups[-1] = (groups[-1][0] * size, step)
        else:
            groups.append((size, step))
    return groups
