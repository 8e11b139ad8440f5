"""Training on encrypted samples in the style of scikit-learn: fit, predict, score.

The two sides of an estimator belong to two parties here. `fit` is the trainer's: it reads an
encrypted data set, under a trainer's token. `predict` and `score` take an encrypted data set as
well, or plain samples, which a client has: the terms that a client's token reads say how to encode
them, and what the classes are called.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from jaxtyping import Float32, Int16, Shaped
from torch import nn

from cloister.data.columns import Column
from cloister.data.dataset import EncryptedDataset
from cloister.data.encoder import Encoder
from cloister.data.info import DatasetInfo
from cloister.data.owner import Notes
from cloister.data.sources import ArraySource
from cloister.errors import InputError, RangeError, UnsupportedError
from cloister.ring.ring_map import RingMap
from cloister.training.callbacks import Callback
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.model_definition import ModelDefinition
from cloister.training.predictions import (
    PredictionOptions,
    Predictions,
    answers_of,
)
from cloister.training.settings import Settings
from cloister.training.training_authority import TrainingAuthority
from cloister.training.training_run import RunFiles, TrainingOutcome, train
from cloister.training.translation import ClientAccess, Translation, translation

Samples = EncryptedDataset | Path | str | Shaped[np.ndarray, "n ..."]


class EncryptedClassifier:
    """A classifier that is trained on an encrypted data set.

    authority   a connection with a trainer's token
    client      a connection with a client's token; without it classes have no names, and plain
                samples cannot be encoded
    model       as in `train`
    keep        files that the run keeps, such as its checkpoint and its model

    Attributes after `fit`: `model_` (the `EncryptedModel`), `outcome_` (accuracies and claims), and
    `classes_` (own names in the order of `predict_proba`; class numbers of the data set file where
    no client's connection is given).
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        authority: TrainingAuthority,
        *,
        client: ClientAccess | None = None,
        model: nn.Module | ModelDefinition | str = "mlp",
        epochs: int = 5,
        settings: Settings | None = None,
        callbacks: Sequence[Callback] = (),
        keep: RunFiles | None = None,
    ) -> None:
        self.authority, self.client = authority, client
        self.model, self.epochs, self.settings = model, epochs, settings
        self.callbacks, self.keep = callbacks, keep

    def fit(self, dataset: EncryptedDataset | Path | str, y: None = None) -> Self:
        """Train on a data set; its labels are in it.

        Raises   InputError for plain samples or labels, UnsupportedError for a data set without
                 classes, and what `train` raises
        """
        if y is not None or isinstance(dataset, np.ndarray):
            raise InputError(
                "fit: takes an encrypted data set, which holds its labels; make one with "
                "training.encrypt"
            )
        opened = (
            dataset if isinstance(dataset, EncryptedDataset) else EncryptedDataset.open(dataset)
        )
        if opened.targets != "classes":
            raise UnsupportedError(
                f"data set {opened.name!r}: has {opened.targets} to learn, and a classifier needs "
                "classes; use training.train"
            )
        with TemporaryDirectory() as folder:
            keep = self.keep or RunFiles(model=Path(folder) / "model")
            if keep.model is None:
                raise InputError("keep: name the folder of the model, RunFiles(model=...)")
            self.outcome_: TrainingOutcome = train(
                opened, authority=self.authority, model=self.model, epochs=self.epochs,
                settings=self.settings, callbacks=self.callbacks, keep=keep,
            )  # fmt: skip
            self.model_ = EncryptedModel.open(keep.model)
        named = self.client is not None
        numbers = np.arange(self.model_.info.classes)
        self.classes_ = np.array(self._translation().notes.classes) if named else numbers
        return self

    def predict_proba(self, x: Samples) -> Float32[np.ndarray, "n classes"]:
        """Probabilities in the order of `classes_`.

        x   an encrypted data set: its unlabelled samples; or plain samples as the owner's arrays:
            pixels of 0 to 255 as uint8, else values in own units; rows of a table in the order of
            its columns, a category as its place in them and a date as days since 1970

        Raises   InputError before `fit`, or for plain samples without a client's connection;
                 RangeError, ShapeError, and what `EncryptedModel.predict` raises
        """
        model = self._fitted()
        if isinstance(x, EncryptedDataset | Path | str):
            answers = self._of_encrypted(x, evaluates=False).answers
        else:
            integers = _encoded(np.asarray(x), model.info, self._translation().notes)
            products = RingMap(model.first.linear).apply(integers).view(np.int32)
            scores = model.scores(model.first.values(products, model.info.encoding))
            answers = answers_of(scores, "classes", loss=model.settings.loss)
        if self.client is None:
            return answers
        return self._translation().scores(answers)

    def predict(self, x: Samples) -> Shaped[np.ndarray, " n"]:
        """The class of each sample, by its own name where a client's connection is given.

        Raises   as `predict_proba`
        """
        chosen = self.predict_proba(x).argmax(axis=1)
        return np.asarray(self.classes_[chosen])

    def score(self, x: Samples, y: Shaped[np.ndarray, " n"] | None = None) -> float:
        """Accuracy: on the encrypted test samples of a data set, or on plain samples with classes.

        Raises   as `predict_proba`; InputError for a name that is none of the classes
        """
        self._fitted()
        if isinstance(x, EncryptedDataset | Path | str):
            if y is not None:
                raise InputError("score: an encrypted data set holds its labels; give no others")
            evaluated = self._of_encrypted(x, evaluates=True).evaluated
            return float("nan") if evaluated is None else evaluated.accuracy
        wanted = np.asarray(y).astype(str)
        unknown = sorted(set(wanted) - set(self.classes_.astype(str)))
        if unknown:
            known = ", ".join(self.classes_.astype(str))
            raise InputError(f"score: {unknown[0]!r} is none of the classes {known}")
        return float((self.predict(x).astype(str) == wanted).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **given: object) -> Self:
        """Change arguments of the constructor.

        Raises   InputError naming one that it does not take
        """
        for name, value in given.items():
            if name not in _parameters():
                raise InputError(f"EncryptedClassifier takes no {name}")
            setattr(self, name, value)
        return self

    def _fitted(self) -> EncryptedModel:
        if not hasattr(self, "model_"):
            raise InputError("EncryptedClassifier: call fit first")
        return self.model_

    def _of_encrypted(self, x: EncryptedDataset | Path | str, *, evaluates: bool) -> Predictions:
        opened = x if isinstance(x, EncryptedDataset) else EncryptedDataset.open(x)
        settings = self.model_.settings
        options = PredictionOptions(
            evaluates=evaluates, allow_unbounded_leakage=settings.allow_unbounded_leakage,
            patience_s=settings.patience_s, threads=settings.threads,
        )  # fmt: skip
        return self.model_.predict(opened, authority=self.authority, options=options)

    def _translation(self) -> Translation:
        if self.client is None:
            raise InputError(
                "predict: plain samples are encoded by the data set's terms, which its clients may "
                "read; give client=, a connection with a client's token"
            )
        model = self.model_
        return translation(model, authority=self.client)


def _encoded(
    x: Shaped[np.ndarray, "n ..."], info: DatasetInfo, notes: Notes
) -> Int16[np.ndarray, "n h w c"]:
    """Plain samples as the integers of a data set.

    Raises   InputError, RangeError, ShapeError
    """
    source = ArraySource(x, None)
    if (source.kind == "pixels") != (notes.kind == "pixels"):
        wanted = "pixels as uint8" if notes.kind == "pixels" else "values as floats"
        raise InputError(f"predict: data set {info.name!r} is of {wanted}, not {x.dtype}")
    _require_cells(x, notes.columns, info.name)
    encoder = Encoder(source, info.encoding, columns=notes.columns)
    encoded: Int16[np.ndarray, "n h w c"] = encoder.encode(np.arange(len(x)))
    if encoded.shape[1:] != info.shape:
        raise InputError(f"predict: a sample is {info.shape}, not {encoded.shape[1:]}")
    return encoded


def _require_cells(x: Shaped[np.ndarray, "n ..."], columns: Sequence[Column], name: str) -> None:
    """Refuse rows of other columns than a table's, and places that no value of a category has.

    Raises   InputError, RangeError naming sample and column
    """
    if not columns:
        return
    if x.shape[1:] != (len(columns),):
        raise InputError(
            f"predict: samples of shape {x.shape[1:]}, and data set {name!r} has "
            f"{len(columns)} columns: {', '.join(column.name for column in columns)}"
        )
    for cells, column in zip(x.T, columns, strict=True):
        if column.kind != "category":
            continue
        bad = np.flatnonzero(~np.isin(cells, np.arange(len(column.values))))
        if bad.size:
            raise RangeError(
                f"predict: sample {bad[0]}, column {column.name}: give the place of a value, 0 to "
                f"{len(column.values) - 1} of {', '.join(column.values)}; {cells[bad[0]]:g} is none"
            )


def _parameters() -> tuple[str, ...]:
    return tuple(inspect.signature(EncryptedClassifier).parameters)
