"""Answers for people: labels, probabilities and the report of a run."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cloister.base.reading import open_regular, parsing
from cloister.cli.console import human_bytes
from cloister.errors import InputError
from cloister.trusted.report import Report


@dataclass(frozen=True)
class Guess:
    """One class of a classifier's answer."""

    index: int
    label: str
    probability: float


def read_labels(path: Path) -> list[str]:
    """Class names: one per line, or CSV rows `index,name` with or without a header.

    Raises InputError naming the file.
    """
    with parsing(f"{path}: not a list of labels"), open_regular(path) as file:
        text = file.read().decode("utf-8-sig")
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if not rows:
        raise InputError(f"{path}: holds no labels")
    by_index = rows if rows[0][0].isdecimal() else rows[1:]
    if by_index and all(len(row) > 1 and row[0].isdecimal() for row in by_index):
        names = {int(row[0]): row[1] for row in by_index}
        if max(names) >= 2 * len(names) + 2:
            raise InputError(f"{path}: class {max(names)} is far beyond its {len(names)} rows")
        return [names.get(i, str(i)) for i in range(max(names) + 1)]
    return [line.strip() for line in text.splitlines() if line.strip()]


def is_classifier(output: np.ndarray) -> bool:
    """Whether an output is one vector of class scores per sample."""
    wide = [size for size in output.shape[1:] if size != 1]
    return output.dtype.kind == "f" and len(wide) == 1 and output.ndim > 1


def probabilities(scores: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Class probabilities; a softmax unless the scores are probabilities already."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
        return rows
    powers: np.ndarray = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def best(scores: np.ndarray, *, top: int, labels: Sequence[str]) -> list[list[Guess]]:
    """The likeliest classes of every sample, best first."""
    rows = probabilities(scores)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        [
            Guess(int(i), labels[i] if i < len(labels) else f"class {i}", float(row[i]))
            for i in indices
        ]
        for row, indices in zip(rows, order, strict=True)
    ]


def summary(report: Report) -> list[str]:
    """The report in a few lines."""
    count = report.inputs
    lines = [
        f"{count} input{'' if count == 1 else 's'}, policy {report.policy}: "
        f"trusted {report.trusted_ms / count:.2f} ms and "
        f"worker {report.worker_ms / count:.2f} ms per input",
        f"sent {human_bytes(report.bytes_to_worker)}, "
        f"received {human_bytes(report.bytes_from_worker)}",
    ]
    if report.pads_used:
        made = (
            f", made in {report.offline_ms / count:.2f} ms per input" if report.offline_ms else ""
        )
        lines.append(f"pads used {report.pads_used} ({report.pads_from}{made})")
    if report.workers_lost:
        lines.append(f"workers lost on the way: {', '.join(report.workers_lost)}")
    if report.soundness_bits is not None:
        lines.append(
            f"checked: a wrong answer of a layer passes with probability at most "
            f"2^-{report.soundness_bits:.1f}"
        )
    lines.append(f"hardware rooted: {'yes' if report.hardware_rooted else 'no'}")
    return lines
