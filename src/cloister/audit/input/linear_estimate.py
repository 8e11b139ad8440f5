"""The best linear estimate of images from their crossing values: ridge regression, in closed form.

The penalty is chosen by cross-validation that leaves out one image at a time, in closed form too.
Products are in float64: what a model hides in the low digits of its values is found too.
"""

import numpy as np
import torch
from torch import Tensor

from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.split_view import SplitView

PENALTIES = tuple(10.0**power for power in range(-14, 5))
"""Relative to the mean square of a feature, times the number of images."""
SMALLEST = 1e-13
"""Eigenvalues below this share of the largest are rounding errors: of float32 values, and of their
mean, which leaves an eigenvalue that would be 0."""
VALIDATED = 500
"""Public images whose errors choose the penalty."""
COLUMNS = 1 << 14
"""Features of which a float64 copy is made at once."""
LEAST_FREE = 1e-20
"""Of 1 - leverage: an image that decides its own estimate alone says nothing of others."""


class LinearEstimate:
    """Ridge regression by the decomposition X = U S V^T of the centred public values X.

    V and S come from X^T X for few values, and from X X^T for few images (dual form). With them
    an estimate is (x V) (S^2 + penalty)^-1 (V^T X^T Y) for every penalty.

    left_out   the estimates of the public images, each from all others
    """

    def __init__(self, view: SplitView, images: Tensor) -> None:
        self._scale, self._shape = FeatureScale(view), images.shape[1:]
        x, y = self._scale.rows(view), images.flatten(1)
        self._x_mean, self._y_mean = x.mean(0), y.double().mean(0)
        x, y = x - self._x_mean, y.double() - self._y_mean
        self._count = len(x)
        dual = x.shape[1] > x.shape[0]
        squares, vectors = torch.linalg.eigh(_products(x, x) if dual else _products(x.T, x.T))
        kept = squares > SMALLEST * squares.max().clamp_min(1e-30)
        self._squares, vectors = squares[kept], vectors[:, kept]
        # In the dual form V = X^T U / S; a product with it is two, without a large matrix kept.
        self._right = (x, vectors / self._squares.sqrt()) if dual else (None, vectors)
        along = self._along(x)
        self._left = along.T @ y
        unit = len(x) * float(x.square().mean())
        tried = along[:VALIDATED], y[:VALIDATED]
        errors = []
        for penalty in PENALTIES:
            self._penalty = penalty * unit
            errors.append(float(self._left_out_errors(*tried).square().mean()))
        self._penalty = PENALTIES[int(np.argmin(errors))] * unit
        left_out = self._y_mean + y - self._left_out_errors(along, y)
        self.left_out = left_out.reshape(images.shape).to(images.dtype)

    def __call__(self, view: SplitView) -> Tensor:
        """The images of a view, near 0..1."""
        along = self._along(self._scale.rows(view) - self._x_mean)
        images = (self._y_mean + self._pixels(along)).reshape(-1, *self._shape)
        return images.float()

    def _left_out_errors(self, along: Tensor, y: Tensor) -> Tensor:
        """What each estimate misses that is made from all other images.

        That is the residual over 1 - leverage. Both are sums over what the penalty holds back, and
        no differences of nearly equal numbers, which a small penalty makes of them.
        """
        roots = self._squares.sqrt()
        unit, along_y = along / roots, self._left / roots[:, None]
        held = unit * (self._penalty / (self._squares + self._penalty))
        free, errors = (held * unit).sum(1), held @ along_y
        if len(roots) < self._count - 1:
            free += (1 - 1 / self._count - unit.square().sum(1)).clamp_min(0)
            errors += y - unit @ along_y
        left_out: Tensor = errors / free.clamp_min(LEAST_FREE)[:, None]
        return left_out

    def _along(self, x: Tensor) -> Tensor:
        """Rows x V."""
        images, vectors = self._right
        along: Tensor = (x.double() if images is None else _products(x, images)) @ vectors
        return along

    def _pixels(self, along: Tensor) -> Tensor:
        pixels: Tensor = (along / (self._squares + self._penalty)) @ self._left
        return pixels


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T in float64, of float32 rows."""
    found = torch.zeros((len(a), len(b)), dtype=torch.float64)
    for start in range(0, a.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        found += a[:, columns].double() @ b[:, columns].double().T
    return found
