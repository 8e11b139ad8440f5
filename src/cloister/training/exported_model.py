"""A trained model as one ONNX file, in its owner's units and class names.

    inputs       pixels: `image`, 0 to 255 (n, c, h, w). Arrays: `x`, as they were encrypted
                 (n, h, w, c) or (n, elements). Tables: one input (n, 1) for each column; numbers as
                 they are, dates in days since 1970-01-01, texts for categories. NaN or an empty
                 text is a missing cell
    encoding     in the graph: fills, one-hot elements, ranges
    first layer  a convolution or dense layer again, of the weights that its integers stand for
    outputs      classes: `probabilities` (n, names), and `class`, the likeliest name (n,).
                 labels: `probabilities`. numbers: `values`, in their own units

The permutation of classes is undone here. A sample is not rounded to the steps of its encoding, as
encrypted ones were: that differs by at most the encoding's resolution.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from cloister.base import files
from cloister.data.columns import Column
from cloister.data.owner import Notes
from cloister.errors import InputError
from cloister.graph.graph import SAMPLES
from cloister.graph.onnx.export import model_bytes
from cloister.graph.sample_form import SampleForm
from cloister.ring.linear import Geometry
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.translation import ClientAccess, Translation, translation

ML = "ai.onnx.ml"
BATCH = "batch"
TRAINING, CLAIMS = "cloister.training", "cloister.claims"


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX file, and what it takes and gives, by name.

    model, dataset   names of what was trained, and on what
    """

    model: str
    dataset: str
    content: bytes
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def export(model: Path | str, out: Path | str, *, authority: ClientAccess) -> ExportedModel:
    """Write the ONNX file of a model that `train` kept; for its owner alone (0600).

    model       its folder
    authority   of the data set, asked with a client's token

    Raises      InputError naming the file; EncryptionError, UnknownDatasetError as `translation`
    """
    out = Path(out)
    if out.suffix.lower() != ".onnx":
        raise InputError(f"{out}: give a file .onnx")
    made = exported(EncryptedModel.open(model), authority=authority)
    files.replace(out, made.content, private=True)
    return made


def exported(model: EncryptedModel, *, authority: ClientAccess) -> ExportedModel:
    """The model as an ONNX file.

    authority   of the data set; a client's token tells names and units
    Raises      as `translation`
    """
    told = translation(model, authority=authority)
    nodes = _Nodes([column.name for column in told.notes.columns])
    x, axes = _samples(nodes, model, told)
    _first_layer(nodes, model, x, axes)
    rest = _rest(nodes, model)
    outputs = _answers(nodes, model, told)
    graph = helper.make_graph(nodes.made, "model", nodes.inputs, outputs, nodes.constants)
    made = helper.make_model(
        graph, opset_imports=[*rest.opset_import, *nodes.domains], ir_version=rest.ir_version,
        producer_name="cloister",
    )  # fmt: skip
    helper.set_model_props(made, _metadata(model, told))
    onnx.checker.check_model(made)
    return ExportedModel(
        model.name,
        model.info.name,
        made.SerializeToString(),
        _taken(model, told.notes, nodes),
        {value.name: ", ".join(told.notes.classes) for value in outputs},
    )


class _Nodes:
    """The parts of a graph that is being made."""

    def __init__(self, columns: Sequence[str]) -> None:
        # Columns have the names that their owner chose: no name of ours may be one of these.
        self._own, self.rest = (_unused(prefix, columns) for prefix in ("cloister/", "rest/"))
        self.made: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.domains: list[onnx.OperatorSetIdProto] = []
        self._numbers = count()

    def input(self, name: str, kind: int, *shape: int) -> str:
        """A new input of the model; the batch comes first."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, [BATCH, *shape]))
        return name

    def constant(self, value: np.ndarray) -> str:
        name = f"{self._own}constant_{next(self._numbers)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(
        self,
        op: str,
        *inputs: str,
        out: str = "",
        domain: str = "",
        **attributes: Any,  # noqa: ANN401  (what ONNX takes)
    ) -> str:
        """A node; gives the name of its output."""
        out = out or f"{self._own}{op}_{next(self._numbers)}"
        self.made.append(helper.make_node(op, inputs, [out], out, domain=domain, **attributes))
        return out


def _unused(prefix: str, names: Sequence[str]) -> str:
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _taken(model: EncryptedModel, notes: Notes, nodes: _Nodes) -> dict[str, str]:
    """What each input takes."""
    if notes.columns:
        return {column.name: _said(column) for column in notes.columns}
    sizes = "x".join(map(str, model.info.shape))
    encoding = model.info.encoding
    ends = "pixels 0 to 255" if notes.kind == "pixels" else f"{encoding.low:g} to {encoding.high:g}"
    return {value.name: f"{sizes}, {ends}" for value in nodes.inputs}


def _said(column: Column) -> str:
    missing = "" if column.fill is None else f"; missing: {column.fill}"
    if column.kind == "category":
        return f"one of {', '.join(column.values)}{missing}"
    unit = "days since 1970-01-01, " if column.kind == "date" else ""
    return f"{unit}{column.low:g} to {column.high:g}{missing}"


def _float(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _samples(nodes: _Nodes, model: EncryptedModel, told: Translation) -> tuple[str, str]:
    """Samples in the units that the first layer takes, and the order of their axes."""
    height, width, channels = model.info.shape
    if told.notes.kind == "pixels":
        return nodes.input("image", TensorProto.FLOAT, channels, height, width), "nchw"
    if told.notes.kind == "table":
        return _table(nodes, told.notes.columns), "flat"
    if (height, width) == (1, 1):
        return nodes.input("x", TensorProto.FLOAT, channels), "flat"
    return nodes.input("x", TensorProto.FLOAT, height, width, channels), "nhwc"


def _table(nodes: _Nodes, columns: Sequence[Column]) -> str:
    elements = nodes.add("Concat", *(_column(nodes, one) for one in columns), axis=1)
    middles, halves = (
        np.concatenate([
            np.full(c.elements, other if c.kind == "category" else getattr(c, name), np.float32)
            for c in columns
        ])
        for name, other in (("middle", 0.0), ("half", 1.0))
    )  # fmt: skip
    moved = nodes.add("Sub", elements, nodes.constant(middles))
    return nodes.add("Div", moved, nodes.constant(halves))


def _column(nodes: _Nodes, column: Column) -> str:
    """The elements of a column, filled where a cell is missing."""
    if column.kind == "category":
        return _category(nodes, column)
    cell = nodes.input(column.name, TensorProto.FLOAT, 1)
    if column.fill is None:
        return cell
    fill = nodes.constant(_float(column.filled_cell))
    return nodes.add("Where", nodes.add("IsNaN", cell), fill, cell)


def _category(nodes: _Nodes, column: Column) -> str:
    """One element for each value; all are 0 for a text that is none of them."""
    cell = nodes.input(column.name, TensorProto.STRING, 1)
    keys = {value: place for place, value in enumerate(column.values)}
    if isinstance(column.fill, str):
        keys[""] = keys[column.fill]
    if not nodes.domains:
        nodes.domains.append(helper.make_opsetid(ML, 3))
    place = nodes.add(
        "LabelEncoder", cell, domain=ML, keys_strings=list(keys), values_int64s=[*keys.values()],
        default_int64=-1,
    )  # fmt: skip
    places = nodes.constant(np.arange(len(column.values), dtype=np.int64))
    return nodes.add("Cast", nodes.add("Equal", place, places), to=TensorProto.FLOAT)


def _first_layer(nodes: _Nodes, model: EncryptedModel, x: str, axes: str) -> None:
    first, out = model.first, nodes.rest + model.rest.inputs[0]
    geometry = first.linear.geometry
    # Pixels p stand for p / 255. The layer divides values itself, and takes them as they are.
    weights = first.weights / (255 if axes == "nchw" else model.info.encoding.divisor)
    bias = nodes.constant(first.bias.astype(np.float32))
    if len(first.shape) == 1:
        order = (0, 3, 1, 2) if axes == "nchw" else (0, 1, 2, 3)
        rows = weights.transpose(order).reshape(len(weights), -1).astype(np.float32)
        flat = x if axes == "flat" else nodes.add("Flatten", x, axis=1)
        nodes.add("Gemm", flat, nodes.constant(rows), bias, transB=1, out=out)
        return
    if axes == "nhwc":
        x = nodes.add("Transpose", x, perm=[0, 3, 1, 2])
    if axes == "flat":
        x = nodes.add("Unsqueeze", x, nodes.constant(np.array([2, 3], np.int64)))
    kernel = weights.transpose(0, 3, 1, 2).astype(np.float32)
    nodes.add(
        "Conv", x, nodes.constant(np.ascontiguousarray(kernel)), bias, out=out,
        kernel_shape=geometry.kernel, strides=geometry.stride, dilations=geometry.dilation,
        group=geometry.groups, pads=[*geometry.pad, *_pad_behind(geometry)],
    )  # fmt: skip


def _pad_behind(geometry: Geometry) -> list[int]:
    """The padding behind the last row and column; less than none is none, which the sizes allow."""
    return [
        max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size - pad)
        for out, stride, kernel, dilation, size, pad in zip(
            geometry.out_size, geometry.stride, geometry.kernel, geometry.dilation,
            geometry.in_size, geometry.pad, strict=True,
        )
    ]  # fmt: skip


def _rest(nodes: _Nodes, model: EncryptedModel) -> onnx.ModelProto:
    """The layers behind the first, under names of their own."""
    rest = compose.add_prefix(onnx.load_model_from_string(model_bytes(model.rest)), nodes.rest)
    nodes.made.extend(rest.graph.node)
    nodes.constants.extend(rest.graph.initializer)
    return rest


def _answers(nodes: _Nodes, model: EncryptedModel, told: Translation) -> list[onnx.ValueInfoProto]:
    """The outputs of the model, the label permutation undone."""
    names = told.notes.classes
    own = nodes.add(
        "Gather", nodes.rest + model.rest.outputs[0], nodes.constant(told.places), axis=1
    )
    if model.info.targets == "numbers":
        halves, middles = (
            nodes.constant(one.astype(np.float32)) for one in (told.halves, told.middles)
        )
        moved = nodes.add("Add", nodes.add("Mul", own, halves), middles, out=_name(nodes, "values"))
        return [_output(moved, TensorProto.FLOAT, len(names))]
    out = _name(nodes, "probabilities")
    if model.info.targets == "labels":
        likely = nodes.add("Sigmoid", own, out=out)
        return [_output(likely, TensorProto.FLOAT, len(names))]
    logs = own
    if model.settings.loss == "mse":  # logarithms of sigmoid outputs: see `answers_of`
        logs = nodes.add("Neg", nodes.add("Softplus", nodes.add("Neg", own)))
    likely = nodes.add("Softmax", logs, axis=1, out=out)
    best = nodes.add("ArgMax", own, axis=1, keepdims=0)
    texts = nodes.constant(np.array(names, object))
    said = nodes.add("Gather", texts, best, out=_name(nodes, "class"))
    return [_output(likely, TensorProto.FLOAT, len(names)), _output(said, TensorProto.STRING)]


def _name(nodes: _Nodes, wanted: str) -> str:
    """A name for an output that no column has."""
    taken = {one.name for one in nodes.inputs}
    return next(name for i in count() if (name := wanted + "_" * i) not in taken)


def _output(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [BATCH, *shape])


def _metadata(model: EncryptedModel, told: Translation) -> dict[str, str]:
    notes = told.notes
    form = SampleForm(notes.kind, notes.columns, model.info.targets, notes.classes)
    training = {
        "model": model.name, "data set": model.info.name, "authority": model.authority,
        "settings": asdict(model.settings), "epochs": list(model.history),
    }  # fmt: skip
    return {SAMPLES: form.to_json(), TRAINING: json.dumps(training), CLAIMS: str(model.claims)}
