"""Training on encrypted data: the data set's file, the first layers, the trainer.

Names are loaded when they are first used: data sets are written and read without PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloister.data.dataset import EncryptedDataset
    from cloister.data.feature_noise import GaussianNoise
    from cloister.training.layers import EncryptedConv2d, EncryptedLinear
    from cloister.training.trainer import Trainer

__all__ = ["EncryptedConv2d", "EncryptedDataset", "EncryptedLinear", "GaussianNoise", "Trainer"]

_HOMES = {
    "EncryptedConv2d": "training.layers",
    "EncryptedDataset": "data.dataset",
    "EncryptedLinear": "training.layers",
    "GaussianNoise": "data.feature_noise",
    "Trainer": "training.trainer",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cloister.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
