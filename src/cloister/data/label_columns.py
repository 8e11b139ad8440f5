"""The label columns of a table: classes, labels of which a row may have any, or numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from cloister.data.cells import TRUTHS, are_truths, category, in_order, shown, truth
from cloister.errors import InputError
from cloister.ring.bounds import MAX_CLASSES


class LabelColumns:
    """The texts of some columns, each kept once, and which row holds which."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path, self._columns = path, columns
        self._known: list[dict[str, int]] = [{} for _ in columns]
        self._pieces: list[np.ndarray] = []

    def add(self, columns: Sequence[Any]) -> None:
        """Add rows, of which no cell is missing.

        Raises   InputError for columns that hold more different texts than there may be classes
        """
        piece = []
        for name, known, texts in zip(self._columns, self._known, columns, strict=True):
            encoded = texts.dictionary_encode()
            found = [category(text) for text in encoded.dictionary.to_pylist()]
            numbers = np.array([known.setdefault(text, len(known)) for text in found], np.int64)
            if len(known) > MAX_CLASSES:
                raise InputError(
                    f"{self._path}: column {name} has more than {MAX_CLASSES} different values, "
                    "which are no classes: numbers to be predicted are read by --targets numbers; "
                    "or name the column of the classes with --label"
                )
            piece.append(numbers[encoded.indices.to_numpy(zero_copy_only=False)])
        self._pieces.append(np.array(piece).T)

    def classes(self) -> tuple[Int64[np.ndarray, " n"], tuple[str, ...]]:
        """Class numbers, and the names of the classes.

        Raises   InputError
        """
        if len(self._columns) > 1:
            raise InputError(
                f"--label {','.join(self._columns)}: classes are in one column; several are read "
                "by --targets labels or numbers"
            )
        (known,) = self._known
        if len(known) > len(TRUTHS) and are_truths(list(known)):
            return self.labels()[:, 0], TRUTHS
        _require_classes(self._path, self._columns[0], list(known))
        # Numbered by name, so that the order of the lines is forgotten.
        names = in_order(known)
        renumbered = np.array([names.index(text) for text in known], np.int64)
        return renumbered[np.concatenate(self._pieces)[:, 0]], names

    @property
    def are_truths(self) -> bool:
        """Whether every cell is a truth value: 0 or 1, true or false, yes or no."""
        return all(truth(text) is not None for known in self._known for text in known)

    def labels(self) -> Int64[np.ndarray, "n k"]:
        """1 for each label that a row has.

        Raises   InputError naming a column that holds something else
        """
        for name, known in zip(self._columns, self._known, strict=True):
            wrong = next((text for text in known if truth(text) is None), None)
            if wrong is not None:
                raise InputError(
                    f"{self._path}: column {name} holds {shown(wrong)}; a label is 0 or 1, true or "
                    "false, yes or no: --targets numbers reads numbers, --targets classes one "
                    "column of classes"
                )
        codes = np.concatenate(self._pieces)
        has = [np.array([truth(text) == "true" for text in known]) for known in self._known]
        columns = [truths[codes[:, place]] for place, truths in enumerate(has)]
        return np.stack(columns, axis=1).astype(np.int64)


def _require_classes(path: Path, label: str, names: Sequence[str]) -> None:
    """Refuse a column of measured numbers: each would become a class."""
    for name in names:
        try:
            number = float(name.replace(",", "."))
        except ValueError:
            return
        if not number.is_integer():
            raise InputError(
                f"{path}: column {label} holds numbers such as {name}, which are no classes: "
                "--targets numbers reads numbers to be predicted; or group them, or name the "
                "column of the classes with --label"
            )
