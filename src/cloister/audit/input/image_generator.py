"""A network from crossing values to images, whatever their sizes.

Each value enters at its level of a pyramid (value_entry.py). Residual blocks work from the smallest
level in use up to level 1, whose channels are then rearranged into the pixels of level 0: most of
what a network at level 0 would find costs a quarter there.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.audit.input.value_entry import ValueEntry, initialise, level_of, pyramid, resized

WIDTHS = (32, 64, 96, 128, 128)
"""Channels at level 1 and below."""
DEPTHS = (1, 2, 2, 2, 2)
"""Residual blocks there."""


class ImageGenerator(nn.Module):
    """What has to be added to an estimate of an image.

    shapes       of the crossing values of one input
    image_shape  (c, h, w)
    generator    draws the weights
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        image_shape: tuple[int, int, int],
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        self._sizes = pyramid(height, width)
        own = [level_of(shape, self._sizes) for shape in shapes]
        self._levels = [max(level, 1) for level in own]
        self._deepest = max(self._levels)
        # What crosses with all its places may be close to a linear function of the image.
        self._large = [i for i, level in enumerate(own) if level == 0]
        widths = WIDTHS[: self._deepest]
        with torch.device("meta"):
            self.entries = nn.ModuleList(
                ValueEntry(shape, self._sizes, level=level, channels=widths[level - 1])
                for shape, level in zip(shapes, self._levels, strict=True)
            )
            self.blocks = nn.ModuleList(
                nn.Sequential(*(_Block(width) for _ in range(depth)))
                for width, depth in zip(widths, DEPTHS[: self._deepest], strict=True)
            )
            self.rises = nn.ModuleList(
                nn.Conv2d(lower, upper, 1) for upper, lower in pairwise(widths)
            )
            self.pixels = nn.Conv2d(widths[0], 4 * channels, 3, padding=1)
            self.linear = nn.ModuleList(
                nn.Conv2d(shapes[i][0], channels, 5, padding=2) for i in self._large
            )
        initialise(self, generator)
        for last in (self.pixels, *self.linear):
            # The network starts at the estimate.
            last.weight.data.zero_()

    def forward(self, values: Sequence[Tensor], estimate: Tensor) -> Tensor:
        """The images near 0..1, from values as `FeatureScale` gives them."""
        entered: dict[int, Tensor] = {}
        for level, entry, value in zip(self._levels, self.entries, values, strict=True):
            found = entry(value)
            entered[level] = entered[level] + found if level in entered else found
        x = self.blocks[self._deepest - 1](entered[self._deepest])
        for level in range(self._deepest - 1, 0, -1):
            x = functional.interpolate(self.rises[level - 1](x), size=self._sizes[level])
            x = self.blocks[level - 1](x + entered[level] if level in entered else x)
        height, width = self._sizes[0]
        image = estimate + functional.pixel_shuffle(self.pixels(x), 2)[:, :, :height, :width]
        for i, linear in zip(self._large, self.linear, strict=True):
            image = image + linear(resized(values[i], (height, width)))
        return image


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(functional.silu(self.first(functional.silu(x))))
        return x + found
