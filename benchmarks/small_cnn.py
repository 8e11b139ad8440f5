"""A small convolutional network for pictures of 32x32, as `cloister train --model` takes it."""

from torch import nn


def build(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Three convolutions of 3x3, two poolings, one dense layer."""
    height, width, channels = shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), classes),
    )  # fmt: skip
