"""What an attacker believes of images before it sees anything, as ways to search for them.

Each prior says what is searched (`begin`), which image that is (`images`) and how unlikely it is
(`penalty`). All images of a batch are searched at once and independently.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from cloister.audit.input.value_entry import pyramid

SMALLEST_VARIANCE = 1e-6
"""Directions of less, as a share of the largest, are left out: images do not vary there."""
SMOOTH = 1e-6
"""Keeps the gradient of a total variation finite where pixels are equal."""


class ImagePrior(Protocol):
    """A belief about images."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def pace(self) -> float:
        """The learning rate of a search."""
        ...

    def begin(self, starts: Tensor, *, generator: torch.Generator) -> list[Tensor]:
        """What is searched, at its start for each of some images (n, c, h, w)."""
        ...

    def images(self, searched: Sequence[Tensor]) -> Tensor:
        """The images."""
        ...

    def penalty(self, searched: Sequence[Tensor], images: Tensor) -> Tensor:
        """How unlikely each image is."""
        ...


class TotalVariation:
    """Neighbouring pixels are alike. The search is for the pixels themselves."""

    pace = 0.02

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self.name = f"total variation {weight:g}"

    def begin(self, starts: Tensor, *, generator: torch.Generator) -> list[Tensor]:
        """See ImagePrior."""
        return [starts.clone()]

    def images(self, searched: Sequence[Tensor]) -> Tensor:
        """See ImagePrior; a pixel beyond black or white keeps its gradient."""
        (pixels,) = searched
        return pixels + (pixels.clamp(0, 1) - pixels).detach()

    def penalty(self, searched: Sequence[Tensor], images: Tensor) -> Tensor:
        """See ImagePrior."""
        down = functional.pad(images.diff(dim=2), (0, 0, 0, 1))
        across = functional.pad(images.diff(dim=3), (0, 1))
        steps: Tensor = (down.square() + across.square() + SMOOTH).sqrt()
        total: Tensor = self._weight * steps.mean((1, 2, 3))
        return total


class PublicCovariance:
    """Images vary as the public ones do: a normal distribution with their mean and covariance.

    The search is for coordinates along the directions in which public images vary, in units of
    their deviation there.
    """

    pace = 0.07

    def __init__(self, variation: "ImageVariation", weight: float) -> None:
        self._variation, self._weight = variation, weight
        self.name = f"public covariance {weight:g}"

    def begin(self, starts: Tensor, *, generator: torch.Generator) -> list[Tensor]:
        """See ImagePrior."""
        return [self._variation.coordinates(starts)]

    def images(self, searched: Sequence[Tensor]) -> Tensor:
        """See ImagePrior."""
        (coordinates,) = searched
        return self._variation.images(coordinates)

    def penalty(self, searched: Sequence[Tensor], images: Tensor) -> Tensor:
        """See ImagePrior."""
        (coordinates,) = searched
        return self._weight * coordinates.square().sum(1) / images[0].numel()


class ImageVariation:
    """The directions in which images (n, c, h, w) vary, and their deviations there."""

    def __init__(self, images: Tensor) -> None:
        self._shape = images.shape[1:]
        rows = images.flatten(1)
        self._mean = rows.mean(0)
        rows = rows - self._mean
        dual = rows.shape[1] > rows.shape[0]
        squares, vectors = torch.linalg.eigh(rows @ rows.T if dual else rows.T @ rows)
        kept = squares > SMALLEST_VARIANCE * squares.max().clamp_min(1e-30)
        squares, vectors = squares[kept], vectors[:, kept]
        self._directions = ((rows.T @ vectors) / squares.sqrt() if dual else vectors).T
        self._deviations = (squares / len(rows)).sqrt()

    def coordinates(self, images: Tensor) -> Tensor:
        """Images along the directions, in units of their deviations."""
        along: Tensor = (images.flatten(1) - self._mean) @ self._directions.T
        found: Tensor = along / self._deviations
        return found

    def images(self, coordinates: Tensor) -> Tensor:
        """The images of coordinates."""
        rows: Tensor = self._mean + (coordinates * self._deviations) @ self._directions
        return rows.reshape(-1, *self._shape)


class DeepImagePrior:
    """Images are what a small untrained network draws from noise, a network for each image.

    Source   Heckel, Hand, "Deep Decoder" (arXiv:1810.03982): convolutions of one place, bilinear
             upsampling and normalised channels, so that the networks of a batch are products of
             matrices; the idea is the deep image prior of Ulyanov et al. (arXiv:1711.10925)
    """

    name = "deep image prior"
    pace = 0.02
    WIDTH = 32

    def __init__(self, shape: tuple[int, int, int], *, generator: torch.Generator) -> None:
        self._channels, height, width = shape
        sizes = [size for size in pyramid(height, width) if min(size) >= 4] or [(height, width)]
        self._sizes = sizes[::-1]
        self._code = torch.rand((1, self.WIDTH, *self._sizes[0]), generator=generator)

    def begin(self, starts: Tensor, *, generator: torch.Generator) -> list[Tensor]:
        """See ImagePrior; the networks start at random."""
        inner = [(self.WIDTH, self.WIDTH)] * len(self._sizes)
        return [
            torch.randn((len(starts), *shape), generator=generator) / math.sqrt(shape[1])
            for shape in (*inner, (self._channels, self.WIDTH))
        ]

    def images(self, searched: Sequence[Tensor]) -> Tensor:
        """See ImagePrior."""
        *inner, last = searched
        x = self._code.expand(len(last), -1, -1, -1)
        for size, weights in zip((*self._sizes[1:], self._sizes[-1]), inner, strict=True):
            x = _mixed(weights, x)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
            x = functional.instance_norm(functional.relu(x))
        return _mixed(last, x).sigmoid()

    def penalty(self, searched: Sequence[Tensor], images: Tensor) -> Tensor:
        """See ImagePrior; the network itself is the prior."""
        return torch.zeros(len(images))


def _mixed(weights: Tensor, x: Tensor) -> Tensor:
    """The channels of each image mixed by a matrix of its own."""
    return (weights @ x.flatten(2)).reshape(len(x), -1, *x.shape[2:])
