"""ONNX's own tests of single operators, through the generated C: native and wasm.

Tests of one operator set are compiled as one module, which is faster.
"""

import warnings
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from cloister.codegen.compile_module import OPERATORS
from cloister.errors import ModelError
from cloister.graph.graph import Graph, Node, TensorType
from cloister.graph.inference import with_types
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, Wasm, compiled, joined

NUMBERS = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL,
)  # fmt: skip
EVERY_INPUT = {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "MatMul", "Concat", "Gather", "Where",
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or",
}  # fmt: skip
"""All inputs of these may be computed; of the others only the first, and the rest are weights."""
NOT_COMPILED = {
    "pooling over three axes": ("averagepool_3d", "maxpool_3d"),
    "indices of a maximum": ("maxpool_with_argmax",),
    "training": (
        "batchnorm_example_training", "batchnorm_epsilon_training", "training_dropout",
        "dropout_default_mask",
    ),
    "integers": (
        "div_int32_trunc", "max_int32", "max_int64", "min_int32", "min_int64", "pow_types_int",
        "top_k_same_values",
    ),
    "maxima of truth values": ("max_bool_inputs", "min_bool_inputs"),
    "powers other than 2 and 1/2": (
        "pow_example", "pow_bcast_array", "pow_types_float32_int64", "pow_types_float32_int32",
    ),
    "no elements": (
        "empty_set", "reshape_allowzero_reordered", "slice_start_out_of_bounds",
        "split_zero_size", "sum_square_default_axes_keepdims",
    ),
    "shapes that depend on data": ("reduce_sum_square",),
}  # fmt: skip
"""Why parts of names are refused; all others must pass."""
FEWEST = 250


@dataclass
class Case:
    name: str
    graph: Graph
    inputs: dict
    outputs: list
    rtol: float
    atol: float


def onnx_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test import loader

        found = loader.load_model_tests(kind="node")
    for test in found:
        graph = test.model.graph
        operators = {node.op_type for node in graph.node if not node.domain}
        values = (*graph.input, *graph.output)
        if len(operators) != len({node.op_type for node in graph.node}):
            continue
        if operators <= set(OPERATORS) and all(
            value.type.tensor_type.elem_type in NUMBERS for value in values
        ):
            yield test, operators


def with_weights(test, operators):
    """The model with its weights as constants, and the values of the inputs that are left."""
    model = onnx.ModelProto.FromString(test.model.SerializeToString())
    arrays, outputs = test.data_sets[0]
    infos = list(model.graph.input)
    free = range(len(infos)) if operators & EVERY_INPUT else [0]
    for at, array in enumerate(arrays):
        if at not in free:
            weights = numpy_helper.from_array(np.asarray(array), infos[at].name)
            model.graph.initializer.append(weights)
    del model.graph.input[:]
    model.graph.input.extend(infos[at] for at in free)
    return model, {infos[at].name: np.asarray(arrays[at]) for at in free}, outputs


def with_sizes(graph, inputs):
    """The graph for these inputs alone: the importer frees the first axis of every model."""
    types = {name: TensorType(array.dtype, array.shape) for name, array in inputs.items()}
    return with_types(replace(graph, types={**graph.types, **types}))


def with_batch(graph, results):
    """The graph of one sample, whose inputs and outputs lie behind a batch axis."""
    types, constants = dict(graph.types), dict(graph.constants)
    before, behind = [], []
    for name in graph.inputs:
        dtype, shape = types[name].dtype, types[name].shape
        truth = dtype.kind == "b"
        types[f"{name}_sample"] = TensorType(np.dtype(np.int32) if truth else dtype, (1, *shape))
        constants[f"{name}_shape"] = np.array(shape, np.int64)
        inputs, made = (f"{name}_sample", f"{name}_shape"), f"{name}_int" if truth else name
        before.append(Node(f"{name}_from_sample", "Reshape", inputs, (made,)))
        if truth:
            before.append(Node(f"{name}_truth", "Cast", (made,), (name,), {"to": 9}))
    for name, result in zip(graph.outputs, results, strict=True):
        constants[f"{name}_shape"] = np.array((1, *np.shape(result)), np.int64)
        found = name
        if np.asarray(result).dtype.kind == "b":
            found = f"{name}_int"
            behind.append(Node(f"{name}_number", "Cast", (name,), (found,), {"to": 6}))
        inputs, outputs = (found, f"{name}_shape"), (f"{name}_sample",)
        behind.append(Node(f"{name}_to_sample", "Reshape", inputs, outputs))
    wrapped = replace(
        graph,
        nodes=(*before, *graph.nodes, *behind),
        inputs=tuple(f"{name}_sample" for name in graph.inputs),
        outputs=tuple(f"{name}_sample" for name in graph.outputs),
        constants=constants,
        types=types,
    )
    return with_types(wrapped)


def is_refused(name):
    return name == "test_pow" or any(
        part in name for parts in NOT_COMPILED.values() for part in parts
    )


@pytest.fixture(scope="module")
def cases():
    """(cases to compile, names refused): by what the compiler says, against the list above."""
    made, refused = [], []
    for test, operators in onnx_cases():
        model, inputs, outputs = with_weights(test, operators)
        try:
            graph = with_batch(with_sizes(from_model(model, name=test.name), inputs), outputs)
            compiled(graph, builds=())
        except ModelError:
            refused.append(test.name)
            continue
        made.append(Case(test.name, graph, inputs, outputs, test.rtol, test.atol))
    return made, refused


def test_exactly_the_listed_tests_are_refused(cases):
    made, refused = cases
    assert [name for name in refused if not is_refused(name)] == []
    assert [case.name for case in made if is_refused(case.name)] == []
    tested = {node.op for case in made for node in case.graph.nodes}
    # ONNX has no test of these with types that are compiled.
    assert set(OPERATORS) - tested <= {"Cast", "GlobalMaxPool", "Not"}
    assert len(made) > FEWEST


def test_every_operator_equals_onnx_own_results(cases):
    groups = defaultdict(list)
    for case in cases[0]:
        groups[case.graph.opset].append(case)
    wrong = []
    for group in groups.values():
        module = compiled(
            joined([case.graph for case in group]),
            builds=("native-x86-64-v3", "wasm"),
            contraction="off",
        )
        given = [array[None] for case in group for array in case.inputs.values()]
        native, wasm = Native(module).run(*given), Wasm(module).run(*given).outputs
        at = 0
        for case in group:
            for expected in case.outputs:
                value = native[at][0]
                if value.shape != np.shape(expected) or not np.allclose(
                    value, expected, case.rtol, case.atol, equal_nan=True
                ):
                    wrong.append(case.name)
                if value.tobytes() != wasm[at][0].tobytes():
                    wrong.append(f"{case.name} in wasm")
                at += 1
    assert wrong == []
