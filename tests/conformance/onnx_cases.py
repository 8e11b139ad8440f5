"""ONNX's own tests: single operators, recorded PyTorch models, and simple models.

The test data lie inside the `onnx` package. ONNX Runtime is the judge: a test that it cannot run,
or whose stored outputs it does not compute, is no test for Cloister.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, version_converter

from cloister.graph.ort_session import ORT_ERRORS
from conformance.differences import difference

OLDEST = 7
NEWER = 17
NEWEST_IR, NEWEST_OPSET = 10, 26
"""What ONNX Runtime knows. Most newer tests use nothing new: they are tried as older ones."""
KINDS = ("node", "pytorch-converted", "pytorch-operator", "simple")
WEIGHTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "Einsum": (1,),
    "ConvInteger": (1, 3), "MatMulInteger": (1, 3), "QLinearConv": tuple(range(1, 9)),
    "QLinearMatMul": tuple(range(1, 8)), "DeformConv": (),
}  # fmt: skip
"""Linear operators, and those of their inputs that are constants in a trained model."""
FEEDS_OTHER = {"MatMul": (0,), "Einsum": (0,), "MatMulInteger": (0, 2)}
"""Operators whose first operand may be the constant one."""


@dataclass(frozen=True)
class Case:
    """A model with one set of inputs and the outputs that ONNX stores for them."""

    name: str
    kind: str
    model: onnx.ModelProto
    inputs: tuple[object, ...]
    stored: tuple[object, ...]
    rtol: float
    atol: float

    @cached_property
    def feeds(self) -> dict[str, object]:
        constants = {tensor.name for tensor in self.model.graph.initializer}
        names = [value.name for value in self.model.graph.input if value.name not in constants]
        return dict(zip(names, self.inputs, strict=False))

    @cached_property
    def outputs(self) -> dict[str, object] | None:
        """What ONNX Runtime computes; None where it fails."""
        try:
            names = [value.name for value in self.model.graph.output]
            return dict(zip(names, self._session.run(None, self.feeds), strict=True))
        except Exception:  # noqa: BLE001  (ONNX Runtime raises errors of many classes)
            return None

    @cached_property
    def is_random(self) -> bool:
        """Whether two runs differ: then only types and shapes can be compared."""
        again = self._session.run(None, self.feeds)
        return any(
            difference(one, two, 0) != ""
            for one, two in zip(again, self.outputs.values(), strict=True)
        )

    @cached_property
    def agrees(self) -> bool:
        """Whether ONNX Runtime computes the stored outputs."""
        return all(
            difference(found, wanted, max(self.rtol, 1e-3)) == ""
            for found, wanted in zip(self.outputs.values(), self.stored, strict=True)
        )

    @property
    def linear(self) -> list[onnx.NodeProto]:
        """Linear nodes whose weights are constants."""
        constants = {tensor.name for tensor in self.model.graph.initializer}
        constants |= {n.output[0] for n in self.model.graph.node if n.op_type == "Constant"}
        found = []
        for node in self.model.graph.node:
            weights = [1] if node.op_type in WEIGHTS else []
            weights += FEEDS_OTHER.get(node.op_type, ())[:1]
            if any(at < len(node.input) and node.input[at] in constants for at in weights):
                found.append(node)
        return found

    @cached_property
    def _session(self) -> ort.InferenceSession:
        """Of the model, or of one of a newer opset where ONNX Runtime has dropped its own."""
        versions = {entry.domain: entry.version for entry in self.model.opset_import}
        if versions.get("", NEWER) >= OLDEST:
            return _session(self.model)
        try:
            return _session(self.model)
        except ORT_ERRORS:
            return _session(version_converter.convert_version(self.model, NEWER))


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


def cases(kinds: tuple[str, ...] = KINDS) -> Iterator[Case]:
    """All tests of these kinds, one for each set of inputs, and copies with constant weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test import loader

        tests = [test for kind in kinds for test in loader.load_model_tests(kind=kind)]
    for test in sorted(tests, key=lambda one: (one.kind, one.name)):
        folder = None if test.model_dir is None else Path(test.model_dir)
        model = onnx.load(folder / "model.onnx") if test.model is None else test.model
        model.ir_version = min(model.ir_version, NEWEST_IR)
        for entry in model.opset_import:
            if not entry.domain:
                entry.version = min(entry.version, NEWEST_OPSET)
        sets = _stored(folder, model) if test.data_sets is None else test.data_sets
        for i, (inputs, outputs) in enumerate(sets):
            name = f"{test.kind}/{test.name}" + (f"/{i}" if i else "")
            case = Case(
                name, test.kind, model, tuple(map(_array, inputs)), tuple(map(_array, outputs)),
                test.rtol, test.atol,
            )  # fmt: skip
            yield case
            if test.kind == "node":
                yield from _with_weights(case)


def _stored(folder: Path, model: onnx.ModelProto) -> Iterator[tuple[list, list]]:
    for one in sorted(folder.glob("test_data_set_*")):
        yield tuple(
            [
                _value((one / f"{part}_{i}.pb").read_bytes(), info.type)
                for i, info in enumerate(infos)
                if (one / f"{part}_{i}.pb").exists()
            ]
            for part, infos in (("input", model.graph.input), ("output", model.graph.output))
        )


def _array(value: object) -> object:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _value(data: bytes, kind: onnx.TypeProto) -> object:
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _with_weights(case: Case) -> Iterator[Case]:
    """The test of a single linear operator with its weights as constants, as models have them."""
    if len(case.model.graph.node) != 1:
        return
    (node,) = case.model.graph.node
    for label, table in (("weights", WEIGHTS), ("first", FEEDS_OTHER)):
        names = [node.input[at] for at in table.get(node.op_type, ()) if at < len(node.input)]
        given = [info.name for info in case.model.graph.input]
        names = [name for name in names if name in given]
        if not names or len(given) == len(names):
            continue
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        values = dict(zip(given, case.inputs, strict=True))
        for name in names:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values[name]), name))
        kept = [info for info in model.graph.input if info.name not in names]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        yield Case(
            f"{case.name}+{label}", case.kind, model,
            tuple(values[info.name] for info in kept), case.stored, case.rtol, case.atol,
        )  # fmt: skip
