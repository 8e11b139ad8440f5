"""Crossing values as attacks take them: tensors of mean 0 and deviation 1 over public images."""

import torch
from torch import Tensor

from cloister.audit.input.split_view import SplitView

SMALLEST = 1e-2
"""Deviations below this share of a value's own are raised to it: nearly constant channels."""


class FeatureScale:
    """Standardises crossing values; maps (n, c, h, w) by channel, all others by element.

    public   the view of the public images, whose statistics these are
    """

    def __init__(self, public: SplitView) -> None:
        self._moments = [_moments(torch.from_numpy(value)) for value in public.values]

    def __call__(self, view: SplitView) -> list[Tensor]:
        """The values of a view: maps (n, c, h, w), and vectors (n, elements) of anything else."""
        return self.scaled([torch.from_numpy(value) for value in view.values])

    def scaled(self, values: list[Tensor]) -> list[Tensor]:
        """The values of a model, with their gradients."""
        return [
            (_as_features(value) / top - mean) / deviation
            for value, (top, mean, deviation) in zip(values, self._moments, strict=True)
        ]

    def rows(self, view: SplitView) -> Tensor:
        """All values of each input in one row."""
        return torch.cat([value.flatten(1) for value in self(view)], dim=1)


def _moments(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest magnitude, and the mean and deviation of a value that is divided by it.

    Divided, values of any scale have squares that neither overflow nor vanish in float32.
    """
    value = _as_features(value)
    top = value.abs().max()
    top = torch.where(top > 0, top, torch.ones_like(top))
    value = value / top
    axes = (0, 2, 3) if value.dim() == 4 else (0,)
    mean = value.mean(axes, keepdim=True)
    deviation = (value - mean).square().mean(axes, keepdim=True).sqrt()
    least = SMALLEST * deviation.square().mean().sqrt()
    return top, mean, torch.maximum(deviation, least.clamp_min(1e-12))


def _as_features(value: Tensor) -> Tensor:
    return value if value.dim() == 4 else value.flatten(1)
