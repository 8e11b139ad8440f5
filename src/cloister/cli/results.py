"""Answers of a run: labels, probabilities and the report, for people and as a document."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cloister.attest.appraisal import Appraisal
from cloister.base.csv_text import csv_text
from cloister.base.reading import open_regular, parsing
from cloister.base.sizes import human_bytes
from cloister.cli.console import out, table
from cloister.errors import InputError
from cloister.graph.batch import batch_axis
from cloister.graph.graph import Graph
from cloister.graph.output_values import are_maps, described
from cloister.graph.sample_form import SampleForm, sample_form
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.trusted.report import Report, Result


@dataclass(frozen=True)
class Guess:
    """One class of a classifier's answer; no probability where the model returns labels alone."""

    index: int
    label: str
    probability: float | None


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


def check_labels(graph: Graph, names: Sequence[str], path: Path | None) -> None:
    """Refuse fewer names than the model has classes.

    Raises   InputError naming the file
    """
    known = graph.types.get(graph.outputs[0])
    classes = max((size or 0 for size in known.shape[1:]), default=0) if known else 0
    if names and len(names) < classes:
        raise InputError(f"--labels {path}: {len(names)} names for {classes} classes")


def is_classifier(output: np.ndarray) -> bool:
    """Whether an output is one vector of class scores per sample."""
    wide = [size for size in output.shape[1:] if size != 1]
    return output.dtype.kind == "f" and len(wide) == 1 and output.ndim > 1


def probabilities(scores: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Class probabilities; a softmax unless the scores are probabilities already."""
    rows = scores.reshape(len(scores), -1).astype(np.float64)
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
        return rows
    with np.errstate(invalid="ignore"):  # scores may be NaN or infinite, as the model makes them
        powers: np.ndarray = np.exp(rows - rows.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def best(rows: np.ndarray, *, top: int, labels: Sequence[str]) -> list[list[Guess]]:
    """The likeliest classes of every sample, best first, from the probability of each."""
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top]
    return [
        [Guess(int(i), _named(i, labels), float(row[i])) for i in indices]
        for row, indices in zip(rows, order, strict=True)
    ]


def likeliest(maps: Sequence[Mapping[object, float]], *, top: int) -> list[list[Guess]]:
    """The likeliest classes of every sample, of a model that returns a map from class to number."""
    rows = [sorted(enumerate(one.items()), key=lambda entry: -entry[1][1]) for one in maps]
    return [[Guess(i, str(key), float(p)) for i, (key, p) in row[:top]] for row in rows]


def is_labels(output: np.ndarray) -> bool:
    """Whether an output is one class per sample, or a few, the best first."""
    return output.dtype in (np.int64, np.object_) and output.ndim in (1, 2)


def stated(classes: np.ndarray, *, top: int, labels: Sequence[str]) -> list[list[Guess]]:
    """The classes that a model returns of every sample."""
    rows = classes.reshape(len(classes), -1)[:, :top]
    if classes.dtype == np.object_:
        return [[Guess(rank, str(text), None) for rank, text in enumerate(row)] for row in rows]
    return [[Guess(int(i), _named(i, labels), None) for i in row] for row in rows]


def _named(index: int, labels: Sequence[str]) -> str:
    return labels[index] if 0 <= index < len(labels) else f"class {index}"


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
    if report.queries_used:
        left = "" if report.queries_left is None else f", {report.queries_left} left"
        lines.append(
            f"hidden part: {report.queries_used} "
            f"quer{'y' if report.queries_used == 1 else 'ies'} answered{left}, "
            f"{report.module_ms / count:.2f} ms per input"
        )
    if report.workers_lost:
        lines.append(f"workers lost on the way: {', '.join(report.workers_lost)}")
    if report.soundness_bits is not None:
        lines.append(
            f"checked: a wrong answer of a layer passes with probability at most "
            f"2^-{report.soundness_bits:.1f}"
        )
        answers = [row for row in report.layers if row.bytes_from_worker > 0]
        believed = sum(row.soundness_bits is None for row in answers)
        if believed:
            lines.append(f"not checked: {believed} of {len(answers)} answers of workers")
    if report.appraisal is not None:
        lines.append(f"ran on another machine: {appraised(report.appraisal)}")
    lines.append(f"hardware rooted: {'yes' if report.hardware_rooted else 'no'}")
    return lines


def appraised(found: Appraisal) -> str:
    """What an appraisal found, in one line."""
    evidence = found.evidence
    parts = [f"{evidence.format} evidence accepted", f"revocation {evidence.revocation}"]
    if found.manifest is not None:
        parts.append(f"manifest {found.manifest.hex()[:16]}")
    if found.weakened:
        parts.append(f"policy weakened by {', '.join(found.weakened)}")
    return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a run found out about inputs.

    claims    what the plan protects
    sources   where every input came from
    origin    where the plan came from
    """

    plan: Plan
    claims: Claims
    result: Result
    sources: Sequence[str]
    origin: str
    labels: Sequence[str] = field(default=())
    top: int = 5

    @property
    def _form(self) -> SampleForm | None:
        return sample_form(self.plan.graph)

    @property
    def _names(self) -> Sequence[str]:
        """Names of classes that the caller gives, or else the model."""
        return self.labels or (self._form.names if self._form is not None else ())

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        outputs = self.result.outputs
        by_sample = {key: self._by_sample(key) for key in outputs}
        guesses = self._guesses(next(iter(outputs)))
        return {
            "outputs": [
                {
                    "input": source,
                    "top": [vars(guess) for guess in guesses[i]] if guesses else [],
                    "values": {
                        key: outputs[key] if values is None else values[i]
                        for key, values in by_sample.items()
                    },
                }
                for i, source in enumerate(self.sources)
            ],
            "report": self.result.report.to_dict(),
            "claims": self.claims.to_dict(),
            "calibration": self.origin,
            "plan_digest": self.plan.digest,
        }

    def show(self) -> None:
        """Print them for people."""
        console = out()
        name, scores = next(iter(self.result.outputs.items()))
        guesses = self._guesses(name)
        if self._form is not None and self._form.targets == "numbers":
            numbers = [
                (source if rank == 0 else "", number, f"{value:.6g}")
                for source, row in zip(self.sources, scores, strict=True)
                for rank, (number, value) in enumerate(zip(self._names, row, strict=True))
            ]
            console.print(table(("input", "number", "value"), numbers))
        elif guesses is not None:
            rows = [
                (source if rank == 0 else "", guess.label, *_percent(guess.probability))
                for source, found in zip(self.sources, guesses, strict=True)
                for rank, guess in enumerate(found)
            ]
            told = self._form is not None and self._form.targets == "labels"
            columns = ("input", "label", "probability" if told else "softmax")
            console.print(table(columns[: len(rows[0])] if rows else columns, rows))
        else:
            console.print(f"output {name!r}: {described(scores)}; --out keeps the values")
        console.print()
        for line in (*summary(self.result.report), self.origin):
            console.print(line)
        console.print()
        console.print(str(self.claims), soft_wrap=True)

    def to_csv(self) -> str:
        """A row for each input: the likeliest class, and a column for each number of the outputs.

        Raises   InputError for an output without a value for each input
        """
        header = ["input"]
        columns: list[list[object]] = [list(self.sources)]
        for name in self._shown_outputs:
            for title, cells in self._columns(name):
                header.append(title)
                columns.append(cells)
        return csv_text(header, zip(*columns, strict=True))

    @property
    def _shown_outputs(self) -> Sequence[str]:
        """An exported model's first output says all; the others repeat it."""
        names = list(self.result.outputs)
        return names if self._form is None else names[:1]

    def _columns(self, name: str) -> Iterator[tuple[str, list[object]]]:
        values = self._by_sample(name)
        if values is None:
            raise InputError(
                f"output {name!r} has no value for each input, and a .csv a row for each; name an "
                ".npz with --out"
            )
        guesses = self._guesses(name) if name == next(iter(self.result.outputs)) else None
        told = self._form is not None and self._form.targets == "labels"
        if guesses is not None and not told:
            yield "class", [row[0].label if row else "" for row in guesses]
        if isinstance(values, list):
            for key in dict.fromkeys(key for row in values for key in row):
                yield str(key), [_written(row.get(key, "")) for row in values]
            return
        if guesses is not None and is_labels(values):
            return
        rows = values.reshape(len(values), -1)
        if guesses is not None:
            rows = rows if told else probabilities(values)
            titles = [_named(i, self._names) for i in range(rows.shape[1])]
        elif self._form is not None:
            titles = list(self._names)
        else:
            titles = [name] if values.ndim == 1 else [f"{name}[{i}]" for i in range(rows.shape[1])]
        for title, cells in zip(titles, rows.T, strict=True):
            yield title, [_written(cell) for cell in cells.tolist()]

    def _guesses(self, name: str) -> list[list[Guess]] | None:
        scores = self._by_sample(name)
        if isinstance(scores, list):
            return likeliest(scores, top=self.top)
        if scores is None:
            return None
        if is_labels(scores):
            return stated(scores, top=self.top, labels=self._names)
        targets = "classes" if self._form is None else self._form.targets
        if targets == "numbers" or not is_classifier(scores):
            return None
        likely = scores if targets == "labels" else probabilities(scores)
        return best(likely, top=self.top, labels=self._names)

    def _by_sample(self, name: str) -> np.ndarray | list[dict[object, float]] | None:
        """An output with the samples as its first axis; None where it has no such axis."""
        value, axis = self.result.outputs[name], batch_axis(self.plan.graph, name)
        if are_maps(value):
            return list(value) if len(value) == len(self.sources) else None
        if axis is None or not isinstance(value, np.ndarray):
            return None
        return np.moveaxis(value, axis, 0) if value.shape[axis] == len(self.sources) else None


def _written(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _percent(probability: float | None) -> tuple[str, ...]:
    return () if probability is None else (f"{100 * probability:6.2f} %",)
