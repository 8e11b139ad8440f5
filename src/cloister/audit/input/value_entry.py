"""How crossing values enter a network that works on images, whatever their sizes.

Networks work on a pyramid: level j has 1/2^j of the image's height and width. A map has a level of
its own, the one nearest to its size; numbers without places have a small one.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 5
"""The deepest level."""
VECTOR_SIDE = 5
"""The shorter side of the level that numbers without places get is about this long."""
FEWEST_PLACES = 5
"""A map of fewer places is taken as numbers without places."""

Size = tuple[int, int]


def pyramid(height: int, width: int) -> list[Size]:
    """The sizes of the levels of an image, from its own on."""
    return [(-(-height >> level), -(-width >> level)) for level in range(LEVELS + 1)]


def level_of(shape: Sequence[int], sizes: Sequence[Size]) -> int:
    """The level of a value; 0 is the image's own size."""
    height, width = sizes[0]
    if is_map(shape):
        return _level(math.sqrt(height * width / (shape[1] * shape[2])), least=0)
    return _level(min(height, width) / VECTOR_SIDE, least=1)


def is_map(shape: Sequence[int]) -> bool:
    """Whether a value has places, as images have."""
    return len(shape) == 3 and shape[1] * shape[2] >= FEWEST_PLACES


class ValueEntry(nn.Module):
    """A value as channels at a level of the pyramid.

    The places of a larger map are folded into channels, a smaller map is stretched. A dense layer
    makes a map of numbers without places.
    """

    def __init__(
        self, shape: Sequence[int], sizes: Sequence[Size], *, level: int, channels: int
    ) -> None:
        super().__init__()
        self._size = sizes[level]
        own = level_of(shape, sizes)
        self.dense: nn.Linear | None = None
        self._places = (shape[0], *sizes[own])
        if not is_map(shape):
            self._places = (channels, *sizes[own])
            self.dense = nn.Linear(math.prod(shape), math.prod(self._places))
        self._fold = 2 ** max(level - own, 0)
        self.conv = nn.Conv2d(self._places[0] * self._fold**2, channels, 3, padding=1)

    def forward(self, value: Tensor) -> Tensor:
        """The channels."""
        if self.dense is not None:
            value = self.dense(value.flatten(1)).reshape(-1, *self._places)
        if self._fold > 1:
            height, width = self._size
            value = resized(value, (self._fold * height, self._fold * width))
            value = functional.pixel_unshuffle(value, self._fold)
        found: Tensor = self.conv(resized(value, self._size))
        return found


def resized(x: Tensor, size: Size) -> Tensor:
    """Maps of another size."""
    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Weights as He et al. draw them, from a generator of one's own; biases 0.

    The network is built on the device `meta`: elsewhere its layers would draw first weights from
    PyTorch's global generator.
    """
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.zero_()
            else:
                deviation = math.sqrt(2 / parameter[0].numel())
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))


def _level(ratio: float, *, least: int) -> int:
    return min(max(round(math.log2(ratio)), least), LEVELS)
