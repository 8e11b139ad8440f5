"""What a sample of a model is in its owner's units, and what its answers mean.

A model that `cloister export` writes says so in its metadata. Readers of files (`input_files`)
and of answers take their names and units from there.
"""

import json
from dataclasses import dataclass, replace
from typing import get_args

from cloister.base.reading import parsing
from cloister.data.columns import Column
from cloister.data.encoding import Kind
from cloister.data.info import TARGETS
from cloister.data.preprocessing import Preprocessing
from cloister.errors import InputError, ModelError
from cloister.graph.graph import SAMPLES, Graph

KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class SampleForm:
    """The form of a model's samples and answers.

    kind      pixels: 0 to 255; values: an array's own; table: an input for each column
    columns   of a table, in the order of its inputs
    targets   what the model was trained to give
    names     of classes, labels or numbers, in the order of the first output
    """

    kind: str
    columns: tuple[Column, ...]
    targets: str
    names: tuple[str, ...]

    def to_json(self) -> str:
        """The text of the metadata."""
        fields = {
            "kind": self.kind,
            "columns": [column.to_fields() for column in self.columns],
            "targets": self.targets,
            "names": list(self.names),
        }
        return json.dumps(fields, sort_keys=True)


def sample_form(graph: Graph) -> SampleForm | None:
    """The form that a model states; None: it states none.

    Raises   ModelError
    """
    if not graph.samples:
        return None
    what = f"model {graph.name!r}: its metadata {SAMPLES} are not understood; export it again"
    with parsing(what, kind=ModelError):
        fields = json.loads(graph.samples)
        form = SampleForm(
            fields["kind"],
            tuple(Column.from_fields(one) for one in fields["columns"]),
            fields["targets"],
            tuple(str(name) for name in fields["names"]),
        )
        if form.kind not in KINDS or form.targets not in TARGETS:
            raise ValueError("unknown kind")
        if form.columns and tuple(column.name for column in form.columns) != graph.inputs:
            raise ValueError("its columns are not its inputs")
        return form


def own_pixels(graph: Graph, given: Preprocessing) -> Preprocessing:
    """How pictures become inputs of a model that may state that it takes them as they are.

    Raises   InputError for preprocessing that such a model does not need
    """
    form = sample_form(graph)
    if form is None or form.kind == "table":
        return given
    usual = Preprocessing()
    if (given.scale, given.mean, given.std) != (usual.scale, usual.mean, usual.std):
        taken = "pixels as they are, 0 to 255" if form.kind == "pixels" else "values as they are"
        raise InputError(
            f"model {graph.name!r}: takes {taken}; leave out --scale, --mean and --std"
        )
    return replace(given, scale=1.0, kind=form.kind)
