"""Texts as the inputs of the text networks: TF-IDF of n-grams, and sequences of word numbers.

Source   Google's guide to text classification, which the authors of eNNclave followed: 1- and
         2-grams that occur in at least two texts, the 20,000 with the largest F value of a
         one-way analysis of variance, TF-IDF with smoothed document frequencies and rows of
         length 1; sequences padded with 0 and cut in front

Everything is learnt from training texts alone. No framework is needed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

TOKEN = re.compile(r"\b\w\w+\b")
"""A word of n-grams: two characters or more."""
WORD = re.compile(r"[\w']+")
"""A word of sequences."""
FEWEST_TEXTS = 2
FEWEST_WITHIN = 1e-12
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of which most elements are 0.

    Shapes   row i has values[starts[i]:starts[i + 1]] in these columns
    """

    starts: Int64[np.ndarray, " n1"]
    columns: Int64[np.ndarray, " m"]
    values: Float32[np.ndarray, " m"]
    width: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def dense(self, rows: Int64[np.ndarray, " b"]) -> Float32[np.ndarray, "b width"]:
        """Some rows with their zeros."""
        found = np.zeros((len(rows), self.width), np.float32)
        for i, row in enumerate(rows):
            part = slice(self.starts[row], self.starts[row + 1])
            found[i, self.columns[part]] = self.values[part]
        return found


class NgramVectorizer:
    """TF-IDF rows of the n-grams that tell two classes apart best."""

    def __init__(
        self, texts: Sequence[str], labels: Int64[np.ndarray, " n"], *, features: int
    ) -> None:
        words = Counter(word for text in texts for word in TOKEN.findall(text.lower()))
        self._index = {word: i for i, word in enumerate(sorted(words))}
        keys, rows = self._ngrams(texts)
        self._kept, columns = np.unique(keys, return_inverse=True)
        texts_with = np.bincount(_pairs(rows, columns)[1], minlength=len(self._kept))
        idf = np.log((1 + len(texts)) / (1 + texts_with)) + 1
        matrix = _weighted(rows, columns, idf, len(texts))
        scores = _f_values(matrix, labels)
        scores[texts_with < FEWEST_TEXTS] = -np.inf
        best = np.sort(np.argsort(-scores, kind="stable")[:features])
        self._idf, self._column = idf, np.full(len(self._kept), UNKNOWN)
        self._column[best] = np.arange(len(best))
        self._frequent = texts_with >= FEWEST_TEXTS
        self._features = features

    def __call__(self, texts: Sequence[str]) -> SparseRows:
        """Rows of texts; n-grams that training did not see count for nothing."""
        keys, rows = self._ngrams(texts)
        place = np.searchsorted(self._kept, keys)
        place[place == len(self._kept)] = 0
        known = (self._kept[place] == keys) & self._frequent[place]
        matrix = _weighted(rows[known], place[known], self._idf, len(texts))
        columns = self._column[matrix.columns]
        chosen = columns != UNKNOWN
        row_of = np.repeat(np.arange(len(texts)), np.diff(matrix.starts))[chosen]
        starts = np.searchsorted(row_of, np.arange(len(texts) + 1))
        return SparseRows(starts, columns[chosen], matrix.values[chosen], self._features)

    def _ngrams(
        self, texts: Iterable[str]
    ) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
        """A number for each 1- and 2-gram, and its text; words unknown to training are left out."""
        base = len(self._index) + 1
        keys, rows = [], []
        for row, text in enumerate(texts):
            found = TOKEN.findall(text.lower())
            words = np.array([self._index.get(word, UNKNOWN) for word in found], np.int64) + 1
            pairs = words[:-1] * base + words[1:]
            both = np.concatenate([words[words > 0], pairs[(words[:-1] > 0) & (words[1:] > 0)]])
            keys.append(both)
            rows.append(np.full(len(both), row))
        return np.concatenate(keys), np.concatenate(rows)


def _pairs(
    rows: Int64[np.ndarray, " m"], columns: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Int64[np.ndarray, " p"]]:
    """Each text and n-gram once, by text; and how often one occurs in the other."""
    width = int(columns.max(initial=0)) + 1
    both, counts = np.unique(rows * width + columns, return_counts=True)
    return both // width, both % width, counts


def _weighted(
    rows: Int64[np.ndarray, " m"],
    columns: Int64[np.ndarray, " m"],
    idf: Float64[np.ndarray, " k"],
    texts: int,
) -> SparseRows:
    """Counts times inverse document frequencies, each row of length 1."""
    row, column, count = _pairs(rows, columns)
    values = count * idf[column]
    lengths = np.sqrt(np.bincount(row, values**2, minlength=texts))
    starts = np.searchsorted(row, np.arange(texts + 1))
    return SparseRows(starts, column, (values / lengths[row]).astype(np.float32), len(idf))


def _f_values(matrix: SparseRows, labels: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " k"]:
    """Variance between two classes over that within them, for each column."""
    per_row = np.repeat(labels, np.diff(matrix.starts))
    counts = np.bincount(labels, minlength=2)
    sums = np.stack([
        np.bincount(
            matrix.columns[per_row == label], matrix.values[per_row == label], matrix.width
        )
        for label in range(2)
    ])  # fmt: skip
    squares = np.bincount(matrix.columns, matrix.values.astype(np.float64) ** 2, matrix.width)
    by_class = (sums**2 / counts[:, None]).sum(axis=0)
    between = by_class - sums.sum(axis=0) ** 2 / counts.sum()
    # An n-gram that tells the classes apart without fail has no variance within them.
    within = np.maximum(squares - by_class, FEWEST_WITHIN)
    return np.asarray(between * (counts.sum() - 2) / within)


class WordSequences:
    """Numbers of the most frequent words of training texts; 0 is no word."""

    def __init__(self, texts: Iterable[str], *, words: int, length: int) -> None:
        counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
        # Words of the same frequency in the order of the alphabet: the same table on every machine.
        ordered = sorted(counts, key=lambda word: (-counts[word], word))[: words - 1]
        self._number = {word: i for i, word in enumerate(ordered, 1)}
        self._length = length

    def __call__(self, texts: Sequence[str]) -> Int32[np.ndarray, "n length"]:
        """A row for each text, its words at the end; unknown ones are left out."""
        rows = np.zeros((len(texts), self._length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            known = [self._number.get(word, 0) for word in WORD.findall(text.lower())]
            known = [number for number in known if number][-self._length :]
            if known:
                row[-len(known) :] = known
        return rows
