"""What an attacker on a split has: public images, what they look like there, and the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cloister.audit.input.linear_estimate import LinearEstimate
from cloister.audit.input.split_view import SplitView
from cloister.audit.torch_graph import TorchGraph
from cloister.errors import InputError, ShapeError
from cloister.graph.graph import Graph

AT_ONCE = 128


@dataclass(frozen=True)
class PixelMap:
    """From images (n, c, h, w) in 0..1 to the input of a model: (pixel - mean) / std.

    shape       of one input of the model: (c, h, w), (h, w, c) or (elements,)
    mean, std   one number, or one for each channel
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, images: Tensor) -> Tensor:
        """The model's input for images.

        Raises   ShapeError when the images are not those of the model
        """
        mean, std = (
            torch.tensor(v, dtype=images.dtype).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        x = (images - mean) / std
        if tuple(x.shape[1:]) == self.shape:
            return x
        if tuple(x.permute(0, 2, 3, 1).shape[1:]) == self.shape:
            return x.permute(0, 2, 3, 1)
        if math.prod(self.shape) != x[0].numel():
            raise ShapeError(
                f"images of shape {tuple(images.shape[1:])}, the model takes {self.shape}"
            )
        return x.reshape(-1, *self.shape)


class PartBefore:
    """The part of a model before a split, as an attacker runs it on images.

    Raises   UnsupportedError naming the first node that PyTorch does not run here
    """

    def __init__(self, graph: Graph, pixels: PixelMap) -> None:
        self._graph, self._pixels = TorchGraph(graph), pixels

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The crossing values, with gradients where the images need them."""
        return self._graph.run([self._pixels(images)])

    def view(self, images: Float32[np.ndarray, "n c h w"]) -> SplitView:
        """What images look like at the split, without a worker and without rounding."""
        with torch.no_grad():
            parts = [self(torch.from_numpy(part.copy())) for part in _cut(images)]
        return SplitView(tuple(torch.cat(values).numpy() for values in zip(*parts, strict=True)))


@dataclass(frozen=True, eq=False)
class AttackKnowledge:
    """What an attacker has before it sees the view of other images.

    images   public images of the same domain, in 0..1
    view     what a worker sees of them at the split
    before   the part of the model before the split (white box)

    Raises   InputError, ShapeError when they do not fit together
    """

    images: Float32[np.ndarray, "n c h w"]
    view: SplitView
    before: PartBefore

    def __post_init__(self) -> None:
        if self.images.ndim != 4:
            raise ShapeError(f"public images: (n, c, h, w), got {self.images.shape}")
        if self.view.count != len(self.images):
            raise InputError(f"public images: {len(self.images)}, but a view of {self.view.count}")
        if not (self.images.min(initial=0.0) >= 0.0 and self.images.max(initial=1.0) <= 1.0):
            raise InputError("public images: pixels outside 0..1")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @cached_property
    def linear_estimate(self) -> LinearEstimate:
        """The best linear estimate, made once for all attacks and seeds."""
        return LinearEstimate(self.view, torch.from_numpy(self.images))

    @property
    def blind_guess(self) -> Float32[np.ndarray, "c h w"]:
        """The guess of whoever sees nothing: the mean of the public images."""
        return np.asarray(self.images.mean(axis=0, dtype=np.float64), np.float32)


def _cut(images: np.ndarray) -> Sequence[np.ndarray]:
    return [images[i : i + AT_ONCE] for i in range(0, len(images), AT_ONCE)]
