"""The data of the presets that are trained: read from the folder that CLOISTER_DATA names.

mnist/              the four original files, gzip
text/imdb50k.jsonl.gz       reviews: split, label and text, a JSON object on each line
text/rt-polarity.pos, .neg  sentences; every fifth of either class is held out
"""

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from cloister.base.reading import open_regular, parsing
from cloister.data.idx_file import read_idx
from cloister.errors import InputError
from cloister.splits.presets import ROTTEN_LENGTH, WORDS
from cloister.splits.text_features import NgramVectorizer, SparseRows, WordSequences

VARIABLE = "CLOISTER_DATA"
HELD_OUT_EVERY = 5


@dataclass(frozen=True, eq=False)
class PresetSamples:
    """Inputs of a network with their classes."""

    x: np.ndarray | SparseRows
    y: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, which: Int64[np.ndarray, " b"]) -> np.ndarray:
        """Inputs of some samples."""
        return self.x.dense(which) if isinstance(self.x, SparseRows) else self.x[which]


@dataclass(frozen=True, eq=False)
class PresetData:
    """Training and test samples of a preset."""

    train: PresetSamples
    test: PresetSamples


def data_folder() -> Path:
    """The folder of all data.

    Raises   InputError naming the variable
    """
    named = os.environ.get(VARIABLE)
    if not named:
        raise InputError(
            f"{VARIABLE} is not set: this preset is trained on real data; set it to the folder "
            "that holds mnist/ and text/"
        )
    return Path(named)


def read_data(name: str) -> PresetData:
    """The data of one of the presets that are trained.

    Raises   InputError naming the file
    """
    readers: dict[str, Callable[[Path], PresetData]] = {
        "mnist": read_mnist, "imdb": _imdb, "rotten": _rotten,
    }  # fmt: skip
    return readers[name](data_folder())


def read_mnist(folder: Path) -> PresetData:
    """MNIST, in the folder of all data.

    Raises   InputError naming the file
    """
    return PresetData(_digits(folder / "mnist", "train"), _digits(folder / "mnist", "t10k"))


def _digits(folder: Path, part: str) -> PresetSamples:
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", axes=3)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", axes=1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} {part} images for {len(labels)} labels")
    return PresetSamples(images[:, None] / np.float32(255), labels)


def _imdb(folder: Path) -> PresetData:
    path = folder / "text" / "imdb50k.jsonl.gz"
    with parsing(f"{path}: not the IMDB reviews"), open_regular(path) as file:
        reviews = [json.loads(line) for line in gzip.decompress(file.read()).splitlines()]
        train, test = (
            [(one["text"], int(one["label"])) for one in reviews if one["split"] == split]
            for split in ("train", "test")
        )
    return _vectorised(
        train, test, lambda texts, labels: NgramVectorizer(texts, labels, features=WORDS)
    )


def _rotten(folder: Path) -> PresetData:
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
        path = folder / "text" / name
        with parsing(f"{path}: not sentences of text"), open_regular(path) as file:
            sentences = file.read().decode().splitlines()
        for i, sentence in enumerate(sentences):
            (train if i % HELD_OUT_EVERY else test).append((sentence, label))
    return _vectorised(
        train, test, lambda texts, _: WordSequences(texts, words=WORDS, length=ROTTEN_LENGTH)
    )


Labelled = list[tuple[str, int]]
Vectorizer = Callable[[list[str]], np.ndarray | SparseRows]


def _vectorised(
    train: Labelled,
    test: Labelled,
    learn: Callable[[list[str], Int64[np.ndarray, " n"]], Vectorizer],
) -> PresetData:
    texts = [text for text, _ in train]
    labels = np.array([label for _, label in train])
    vectorizer = learn(texts, labels)
    return PresetData(
        PresetSamples(vectorizer(texts), labels),
        PresetSamples(
            vectorizer([text for text, _ in test]), np.array([label for _, label in test])
        ),
    )
