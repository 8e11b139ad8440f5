"""The data of an audit: what the thief has, what surrogates are evaluated on, the members."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped

from cloister.data.csv_source import TableSource
from cloister.data.preprocessing import Preprocessing
from cloister.data.sources import Source, open_source
from cloister.errors import InputError, ShapeError
from cloister.graph.batch import element_type
from cloister.graph.graph import Graph
from cloister.graph.sample_form import own_pixels

AS_UNIT = Preprocessing()
HALVES_SEED = 0
"""Of the partition into the thief's samples and the others: one for all audits of a data set."""


@dataclass(frozen=True, eq=False)
class LabelledSamples:
    """Samples as a model takes them, with their classes."""

    x: Shaped[np.ndarray, "n ..."]
    y: Int64[np.ndarray, " n"]

    def of(self, positions: Int64[np.ndarray, " m"]) -> "LabelledSamples":
        """Some of the samples."""
        return LabelledSamples(self.x[positions], self.y[positions])

    @property
    def sha256(self) -> str:
        """Digest of samples and classes, their types and shapes."""
        found = hashlib.sha256(f"{self.x.dtype.str} {self.x.shape}".encode())
        found.update(np.ascontiguousarray(self.x).data)
        found.update(np.ascontiguousarray(self.y).data)
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class TheftData:
    """Everything that an audit reads besides the model.

    thief       samples that the thief has; their classes are not used
    evaluated   other samples, on which accuracy and fidelity are measured
    members     the victim's training data, if an attack on membership is wanted
    own         whether the thief's samples came apart from the evaluated ones
    """

    thief: Shaped[np.ndarray, "n ..."]
    evaluated: LabelledSamples
    members: LabelledSamples | None
    sha256: str
    own: bool


def read_samples(
    graph: Graph, path: Path, preprocessing: Preprocessing = AS_UNIT
) -> LabelledSamples:
    """The samples of an .npz or .csv file, or of a folder with one folder a class.

    Raises   InputError, ShapeError naming the file
    """
    source = open_source(path, targets="classes")
    return from_source(graph, source, preprocessing, title=str(path))


def from_source(
    graph: Graph, source: Source, preprocessing: Preprocessing = AS_UNIT, *, title: str
) -> LabelledSamples:
    """All samples of a source, as the model takes them.

    Raises   ShapeError
    """
    (name,) = graph.inputs
    preprocessing = own_pixels(graph, preprocessing)
    if source.targets != "classes" or source.labels is None:
        raise InputError(f"{title}: an audit needs the class of every sample")
    if isinstance(source, TableSource):
        other = [column for column in source.columns() if column.kind != "number"]
        if other:
            raise InputError(
                f"{title}: column {other[0].name} is a {other[0].kind}, and the model's input "
                f"{name!r} takes numbers; give them as an .npz"
            )
    x = source.read(np.arange(source.samples, dtype=np.int64))
    if source.kind == "pixels":
        mean, std = (np.array(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
        if any(v.size not in (1, x.shape[-1]) for v in (mean, std)):
            raise ShapeError(f"{title}: --mean and --std need one number or {x.shape[-1]}")
        x = (x.astype(np.float32) * np.float32(preprocessing.scale) - mean) / std
    wanted = tuple(size for size in (graph.sizes(name) or ())[1:] if isinstance(size, int))
    # Pictures have their channels last in a source, most models take them first.
    for candidate in (x.transpose(0, 3, 1, 2), x):
        if candidate.shape[1:] == wanted:
            break
    else:
        if int(np.prod(x.shape[1:])) != int(np.prod(wanted)) or 1 not in x.shape[1:]:
            raise ShapeError(
                f"{title}: samples of shape {source.shape}, the model's input {name!r} takes "
                f"{wanted}"
            )
        candidate = x.reshape(len(x), *wanted)
    values = np.ascontiguousarray(candidate, element_type(graph, name))
    return LabelledSamples(values, source.labels)


def audit_data(
    samples: LabelledSamples,
    *,
    thief: LabelledSamples | None = None,
    members: LabelledSamples | None = None,
    evaluated: int,
) -> TheftData:
    """The parts of an audit's data; without samples of the thief's own, half of the others.

    Raises   InputError when there are too few
    """
    digest = hashlib.sha256()
    for part in (samples, thief, members):
        digest.update(b"" if part is None else bytes.fromhex(part.sha256))
    if len(samples.y) < 2:
        raise InputError("the data: at least two samples are needed")
    generator = torch.Generator().manual_seed(HALVES_SEED)
    order = torch.randperm(len(samples.y), generator=generator).numpy()
    kept, rest = (order, order[:0]) if thief is not None else np.array_split(order, 2)
    pool = samples.of(rest).x if thief is None else thief.x
    return TheftData(
        pool, samples.of(np.sort(kept[:evaluated])), members, digest.hexdigest(), thief is not None
    )
