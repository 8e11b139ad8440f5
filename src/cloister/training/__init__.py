"""Training on encrypted data.

A data owner encrypts samples (`encrypt`). A trainer asks an authority for the keys (`train`). Both
reach the authority by `cloister.authority.connect`. Names are loaded when they are first used: only
the names for training need PyTorch.
"""

import importlib
from typing import TYPE_CHECKING

from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.data.csv_source import TableSource
    from cloister.data.dataset import EncryptedDataset
    from cloister.data.feature_noise import GaussianNoise
    from cloister.data.folder_source import FolderSource, PictureOptions
    from cloister.data.owner import NewDataset, Privacy
    from cloister.data.sources import ArraySource
    from cloister.data.table_options import TableOptions
    from cloister.training.answer_file import open_answers, write_answers
    from cloister.training.callbacks import Callback, EarlyStopping
    from cloister.training.classifier import EncryptedClassifier
    from cloister.training.data_owner import encrypt
    from cloister.training.encrypted_model import EncryptedModel
    from cloister.training.exported_model import export
    from cloister.training.layers import EncryptedConv2d, EncryptedLinear
    from cloister.training.model_definition import ModelDefinition
    from cloister.training.predictions import PredictionOptions
    from cloister.training.settings import Settings
    from cloister.training.trainer import Trainer
    from cloister.training.training_run import RunFiles, train

__all__ = [
    "ArraySource",
    "Callback",
    "EarlyStopping",
    "EncryptedClassifier",
    "EncryptedConv2d",
    "EncryptedDataset",
    "EncryptedLinear",
    "EncryptedModel",
    "FolderSource",
    "GaussianNoise",
    "ModelDefinition",
    "NewDataset",
    "PictureOptions",
    "PredictionOptions",
    "Privacy",
    "RunFiles",
    "Settings",
    "TableOptions",
    "TableSource",
    "Trainer",
    "encrypt",
    "export",
    "open_answers",
    "train",
    "write_answers",
]

_HOMES = {
    "ArraySource": "data.sources",
    "Callback": "training.callbacks",
    "EarlyStopping": "training.callbacks",
    "EncryptedClassifier": "training.classifier",
    "EncryptedConv2d": "training.layers",
    "EncryptedDataset": "data.dataset",
    "EncryptedLinear": "training.layers",
    "EncryptedModel": "training.encrypted_model",
    "FolderSource": "data.folder_source",
    "GaussianNoise": "data.feature_noise",
    "ModelDefinition": "training.model_definition",
    "NewDataset": "data.owner",
    "PictureOptions": "data.folder_source",
    "PredictionOptions": "training.predictions",
    "Privacy": "data.owner",
    "RunFiles": "training.training_run",
    "Settings": "training.settings",
    "TableOptions": "data.table_options",
    "TableSource": "data.csv_source",
    "Trainer": "training.trainer",
    "encrypt": "training.data_owner",
    "export": "training.exported_model",
    "open_answers": "training.answer_file",
    "train": "training.training_run",
    "write_answers": "training.answer_file",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"cloister.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError("training needs PyTorch: pip install 'cloister[train]'") from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
