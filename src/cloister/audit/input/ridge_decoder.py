"""Ridge regression from crossing values to pixels: the floor that trained attacks have to beat."""

import numpy as np
import torch
from torch import Tensor

from cloister.audit.input.attack_knowledge import AttackKnowledge
from cloister.audit.input.feature_scale import FeatureScale
from cloister.audit.input.split_attack import Images
from cloister.audit.input.split_view import SplitView

PENALTIES = tuple(10.0**power for power in range(-6, 4))
"""Relative to the mean square of a feature, times the number of images."""
HELD_OUT = 5
"""One image of so many chooses the penalty."""


class RidgeDecoder:
    """The linear map from values to pixels of the least penalised squared error, in closed form.

    The penalty is chosen on held-out public images. The seed chooses which are held out; the effort
    changes nothing.
    """

    name = "ridge"

    def fit(self, knowledge: AttackKnowledge, *, seed: int, effort: float) -> "RidgeMap":
        """See SplitAttack."""
        scale = FeatureScale(knowledge.view)
        x = scale.rows(knowledge.view)
        y = torch.from_numpy(knowledge.images).flatten(1)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        held, kept = order[: -(-len(x) // HELD_OUT)], order[-(-len(x) // HELD_OUT) :]
        partial = _Normal(x[kept], y[kept])
        errors = [
            float((partial.solution(penalty)(x[held]) - y[held]).square().mean())
            for penalty in PENALTIES
        ]
        penalty = PENALTIES[int(np.argmin(errors))]
        return RidgeMap(scale, _Normal(x, y).solution(penalty), knowledge.image_shape)


class RidgeMap:
    """A fitted map."""

    def __init__(self, scale: FeatureScale, affine: "_Affine", shape: tuple[int, int, int]) -> None:
        self._scale, self._affine, self._shape = scale, affine, shape

    def reconstruct(self, view: SplitView) -> Images:
        """See FittedAttack."""
        pixels = self._affine(self._scale.rows(view)).clamp(0, 1)
        return pixels.reshape(-1, *self._shape).numpy()


class _Affine:
    def __init__(self, weights: Tensor, x_mean: Tensor, y_mean: Tensor) -> None:
        self._weights, self._x_mean, self._y_mean = weights, x_mean, y_mean

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._x_mean) @ self._weights + self._y_mean


class _Normal:
    """The normal equations: of the features, or of the images where these are fewer (dual form)."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x_mean, self._y_mean = x.mean(0), y.mean(0)
        self._x, self._y = x - self._x_mean, y - self._y_mean
        self._dual = x.shape[1] > x.shape[0]
        gram = self._x @ self._x.T if self._dual else self._x.T @ self._x
        # Double precision: small penalties leave little of the diagonal.
        self._gram = gram.double()
        self._right = (self._y if self._dual else self._x.T @ self._y).double()
        self._unit = float(self._x.square().mean()) * len(x)

    def solution(self, penalty: float) -> _Affine:
        """The map of least error under a penalty."""
        ridge = self._gram.clone()
        ridge.diagonal().add_(max(penalty * self._unit, 1e-12))
        factor, failed = torch.linalg.cholesky_ex(ridge)
        if failed:
            # Rounding made the matrix indefinite: this penalty is too small to be one.
            return _Affine(
                torch.zeros(self._x.shape[1], self._y.shape[1]), self._x_mean, self._y_mean
            )
        found = torch.cholesky_solve(self._right, factor).float()
        return _Affine(self._x.T @ found if self._dual else found, self._x_mean, self._y_mean)
