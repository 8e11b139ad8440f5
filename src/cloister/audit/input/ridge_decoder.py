"""Ridge regression from crossing values to pixels: the floor that trained attacks have to beat."""

import numpy as np
import torch
from torch import Tensor

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView

PENALTIES = tuple(10.0**power for power in range(-6, 5))
"""Relative to the mean square of a feature, times the number of images."""
SMALLEST = 1e-7
"""Eigenvalues below this share of the largest are rounding errors of the products."""
VALIDATED = 500
"""Public images whose errors choose the penalty."""


class RidgeDecoder:
    """The linear map from values to pixels of the least penalised squared error, in closed form.

    The penalty is chosen by cross-validation that leaves one image out at a time, in closed form as
    well. Neither seed nor effort changes anything.
    """

    name = "ridge"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> "RidgeMap":
        """See SplitAttack."""
        scale = FeatureScale(knowledge.view)
        fitted = _Ridge(scale.rows(knowledge.view), torch.from_numpy(knowledge.images).flatten(1))
        penalty = min(PENALTIES, key=fitted.left_out_error)
        return RidgeMap(scale, fitted, penalty, knowledge.image_shape)


class RidgeMap:
    """A fitted map."""

    def __init__(
        self, scale: FeatureScale, fitted: "_Ridge", penalty: float, shape: tuple[int, int, int]
    ) -> None:
        self._scale, self._fitted, self._penalty, self._shape = scale, fitted, penalty, shape

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        pixels = self._fitted.predict(self._scale.rows(view), self._penalty)
        return np.asarray(pixels.clamp(0, 1).reshape(-1, *self._shape).numpy(), np.float32)


class _Ridge:
    """Ridge regression for every penalty at once, by one decomposition X = U S V^T, X centred.

    V and S come from X^T X for few features, and from X X^T for few images (dual form).
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x_mean, self._y_mean = x.mean(0), y.mean(0)
        x, y = x - self._x_mean, y - self._y_mean
        self._count = len(x)
        self._unit = self._count * float(x.square().mean())
        dual = x.shape[1] > x.shape[0]
        squares, vectors = torch.linalg.eigh((x @ x.T if dual else x.T @ x).double())
        kept = squares > SMALLEST * squares.max().clamp_min(1e-30)
        self._squares, vectors = squares[kept], vectors[:, kept].float()
        # In the dual form V = X^T U / S; a product with it is two, without a large matrix kept.
        self._right = (x, vectors / self._squares.sqrt().float()) if dual else (None, vectors)
        self._left = self._along(x).T @ y
        self._validated = x[:VALIDATED], y[:VALIDATED]

    def predict(self, x: Tensor, penalty: float) -> Tensor:
        """The pixels for rows of features."""
        return self._y_mean + self._pixels(self._along(x - self._x_mean), penalty)

    def left_out_error(self, penalty: float) -> float:
        """The mean squared error of public images, each predicted from all others."""
        x, y = self._validated
        along = self._along(x)
        leverage = (along.square() / self._divisors(penalty)).sum(1) + 1 / self._count
        errors = (self._pixels(along, penalty) - y) / (1 - leverage).clamp_min(1e-6)[:, None]
        return float(errors.square().mean())

    def _along(self, x: Tensor) -> Tensor:
        """Rows x V."""
        images, vectors = self._right
        along: Tensor = (x if images is None else x @ images.T) @ vectors
        return along

    def _pixels(self, along: Tensor, penalty: float) -> Tensor:
        return (along / self._divisors(penalty)) @ self._left

    def _divisors(self, penalty: float) -> Tensor:
        divisors: Tensor = (self._squares + penalty * self._unit).float()
        return divisors
