"""No branch depends on a value or a weight: a call burns the same fuel whatever they are.

wasmtime counts an instruction of WebAssembly as one unit of fuel when it is executed, so that equal
fuel for different values means that no branch was taken differently, up to branches of equal cost.
"""

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.bundle.compiled_module import CompiledModule
from cloister.codegen.compile_module import OPERATORS
from cloister.codegen.toolchain import compile_c, described, find_compiler
from cloister.graph.onnx.read import from_model
from codegen.modules import Wasm, compiled, joined

IMAGE, VECTOR, SEQUENCE = (1, 6, 7, 5), (1, 9), (1, 5, 6)


def floats(*shape, seed=3):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


SIMPLE = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Exp", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Neg",
    "Abs", "Sqrt", "Reciprocal", "Identity",
)  # fmt: skip
WEIGHTED_PAIR = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
CASES = {
    **{op: (op, IMAGE, (), {}) for op in SIMPLE},
    **{op: (op, IMAGE, (floats(6, 1, 5),), {}) for op in WEIGHTED_PAIR},
    "Gelu tanh": ("Gelu", IMAGE, (), {"approximate": "tanh"}),
    "Clip": ("Clip", IMAGE, (np.float32(-0.5), np.float32(0.5)), {}),
    "Pow": ("Pow", IMAGE, (np.float32(2),), {}),
    "Conv": ("Conv", IMAGE, (floats(17, 6, 3, 2), floats(17)), {"pads": [1, 0, 1, 1]}),
    "Conv strided": (
        "Conv",
        IMAGE,
        (floats(4, 3, 3, 3),),
        {"group": 2, "strides": [2, 1], "dilations": [2, 1]},
    ),
    "Conv depthwise": ("Conv", IMAGE, (floats(6, 1, 3, 3),), {"group": 6, "pads": [1, 1, 1, 1]}),
    "Conv 1-D": ("Conv", SEQUENCE, (floats(3, 5, 3),), {}),
    "Gemm": ("Gemm", VECTOR, (floats(20, 9), floats(20)), {"transB": 1}),
    "MatMul": ("MatMul", SEQUENCE, (floats(6, 3),), {}),
    "BatchNormalization": (
        "BatchNormalization",
        IMAGE,
        (floats(6), floats(6), floats(6), abs(floats(6))),
        {},
    ),
    "LayerNormalization": ("LayerNormalization", SEQUENCE, (floats(6), floats(6)), {}),
    "MaxPool": ("MaxPool", IMAGE, (), {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "AveragePool": (
        "AveragePool",
        IMAGE,
        (),
        {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]},
    ),
    "GlobalMaxPool": ("GlobalMaxPool", IMAGE, (), {}),
    "GlobalAveragePool": ("GlobalAveragePool", IMAGE, (), {}),
    "Softmax": ("Softmax", IMAGE, (), {"axis": 1}),
    "ReduceMean": ("ReduceMean", IMAGE, (ints(2),), {}),
    "ReduceSum": ("ReduceSum", IMAGE, (ints(1, 3),), {}),
    "ReduceMax": ("ReduceMax", IMAGE, (ints(3),), {}),
    "ReduceMin": ("ReduceMin", IMAGE, (ints(3),), {}),
    "ArgMax": ("ArgMax", IMAGE, (), {"axis": 1}),
    "ArgMin": ("ArgMin", IMAGE, (), {"axis": 3}),
    "TopK": ("TopK", VECTOR, (ints(5),), {}),
    "Flatten": ("Flatten", IMAGE, (), {}),
    "Reshape": ("Reshape", IMAGE, (ints(1, 5, 42),), {}),
    "Transpose": ("Transpose", IMAGE, (), {"perm": [0, 3, 1, 2]}),
    "Expand": ("Expand", VECTOR, (ints(1, 4, 9),), {}),
    "Squeeze": ("Squeeze", (1, 1, 9), (ints(1),), {}),
    "Unsqueeze": ("Unsqueeze", VECTOR, (ints(1),), {}),
    "Slice": ("Slice", IMAGE, (ints(4), ints(0), ints(2), ints(-2)), {}),
    "Split": ("Split", IMAGE, (ints(2, 4),), {"axis": 1}),
    "Concat": ("Concat", IMAGE, (floats(1, 2, 7, 5),), {"axis": 1}),
    "Pad": ("Pad", IMAGE, (ints(0, 1, 2, 0, 0, 0, 1, 2),), {"mode": "reflect"}),
    "Gather": ("Gather", VECTOR, (ints(0, 5, -1),), {"axis": 1}),
    "Dropout": ("Dropout", VECTOR, (), {}),
}
OUTPUTS = {"Split": 2, "TopK": 2}


def graph_of_case(case):
    op, shape, constants, attributes = CASES[case]
    names = [f"c{at}" for at in range(len(constants))]
    outputs = [f"y{at}" for at in range(OUTPUTS.get(op, 1))]
    node = helper.make_node(op, ["x", *names], outputs, **attributes)
    kind = TensorProto.INT64 if op in ("ArgMax", "ArgMin") else TensorProto.FLOAT
    infos = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    if op == "TopK":
        infos[1].type.tensor_type.elem_type = TensorProto.INT64
    tensors = [
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in zip(names, constants, strict=True)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]])
    graph = helper.make_graph([node], "one", [x], infos, tensors)
    opsets = [helper.make_opsetid("", 20)]
    return from_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), name="one")


def compiled_case(case):
    return compiled(graph_of_case(case), builds=("wasm",))


def extremes(count, seed):
    """Numbers of one sign, of both, equal ones, and those at which arithmetic is special."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.standard_normal(count))
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, -1e-42, 3e38, -3e38, 88.0, -104.0]
    yield -size - 0.01
    yield size + 0.01
    yield rng.standard_normal(count) * 100
    yield np.zeros(count)
    yield rng.choice(special, count)


@pytest.mark.parametrize("case", CASES)
def test_the_fuel_of_an_operator_depends_on_no_value_and_no_weight(case):
    module = compiled_case(case)
    wasm = Wasm(module)
    shape = (1, *module.manifest.inputs[0].shape)
    count, weights = int(np.prod(shape)), len(module.weights) // 4
    fuel = set()
    for x in extremes(count, 1):
        fuel.add(wasm.run(x.reshape(shape)).fuel)
        for w in extremes(weights, 2):
            changed = w.astype(np.float32).tobytes().ljust(len(module.weights), b"\0")
            fuel.add(wasm.run(x.reshape(shape), weights=changed).fuel)
    assert len(fuel) == 1


def test_a_branch_on_a_value_would_be_found():
    module = compiled_case("Relu")
    line = "y[i0] = clamp(x[i0], 0.0f, POSITIVE_INFINITY);"
    assert line in module.source
    source = module.source.replace(
        line, "y[i0] = 0; for (float at = 0; at < x[i0] && at < 9; at++) y[i0] = opaque(7u);"
    )
    compiler = find_compiler("zig")
    binary = compile_c(source, "wasm", compiler=compiler, contraction="off")
    build = described(binary, "wasm", compiler=compiler, contraction="off")
    manifest = replace(module.manifest, builds={"wasm": build})
    wasm = Wasm(CompiledModule(manifest, {"wasm": binary}, module.weights))
    low, high = (wasm.run(np.full(IMAGE, value, np.float32)).fuel for value in (-1, 5))
    assert low < high


COMPARES = re.compile(r"v?u?comis|v?ptest|v?testp|kortest|ktest|v?p?movmsk")
JUMPS = re.compile(r"j(?!mp)")


def jumps_on_values(binary, folder):
    """Conditional jumps of machine code just behind a comparison of floating-point numbers."""
    (folder / "build").write_bytes(binary)
    command = ["objdump", "-d", "--no-show-raw-insn", str(folder / "build")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split("\t")[-1].split()[0] for line in listing.splitlines() if "\t" in line]
    assert len(names) > 5
    return [
        name
        for at, name in enumerate(names)
        if COMPARES.match(name) and any(map(JUMPS.match, names[at + 1 : at + 4]))
    ]


def test_no_native_build_jumps_on_a_comparison_of_numbers(tmp_path):
    module = compiled(joined([graph_of_case(case) for case in CASES]))
    for binary in module.builds.values():
        assert jumps_on_values(binary, tmp_path) == []


def test_a_native_jump_on_a_comparison_would_be_found(tmp_path):
    source = (
        'void act(void); void f(float x); void act(void) { __asm__ volatile("nop"); }\n'
        '__attribute__((visibility("default"))) void f(float x) { if (x > 0.5f) act(); }\n'
    )
    compiler = find_compiler("zig")
    binary = compile_c(source, "native-x86-64", compiler=compiler, contraction="off")
    assert jumps_on_values(binary, tmp_path) != []


def test_every_operator_has_a_case():
    tested = {op for op, *_ in CASES.values()}
    # These, and Gather by computed indices, are in the test below.
    assert set(OPERATORS) - tested == set(INTEGERS)


INTEGERS = (
    "Cast", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Not", "And", "Or",
    "Where",
)  # fmt: skip


def embedding(rows=11, width=3, tokens=4):
    """Float indices are cast to integers, which choose rows of a table after some detours."""
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=TensorProto.INT64),
        helper.make_node("Less", ["n", "zero"], ["below"]),
        helper.make_node("GreaterOrEqual", ["n", "zero"], ["above"]),
        helper.make_node("Greater", ["n", "zero"], ["more"]),
        helper.make_node("LessOrEqual", ["n", "zero"], ["less"]),
        helper.make_node("Equal", ["n", "zero"], ["same"]),
        helper.make_node("Or", ["more", "same"], ["not_below"]),
        helper.make_node("And", ["above", "not_below"], ["surely_above"]),
        helper.make_node("Not", ["surely_above"], ["surely_below"]),
        helper.make_node("And", ["surely_below", "below"], ["negative"]),
        helper.make_node("And", ["negative", "less"], ["wrapped"]),
        helper.make_node("Add", ["n", "rows"], ["from_behind"]),
        helper.make_node("Where", ["wrapped", "from_behind", "n"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", tokens])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", tokens, width])
    table = np.arange(1, rows * width + 1, dtype=np.float32).reshape(rows, width)
    constants = [
        numpy_helper.from_array(array, name)
        for name, array in (("table", table), ("zero", ints(0)), ("rows", ints(rows)))
    ]
    graph = helper.make_graph(nodes, "e", [x], [y], constants)
    opsets = [helper.make_opsetid("", 20)]
    made = from_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), name="e")
    return compiled(made, builds=("wasm",)), table


def test_an_embedding_reads_the_same_rows_for_every_index():
    module, table = embedding()
    wasm = Wasm(module)
    fuel = set()
    for tokens in ([0, 1, 2, 3], [10, 10, 10, 10], [-1, -11, 5, 0], [11, 99, -12, -1e9],
                   [np.nan, np.inf, -np.inf, 3e38], [0.9, -0.9, 1.5, 9.99]):  # fmt: skip
        found = wasm.run(np.array([tokens], np.float32))
        fuel.add(found.fuel)
        for token, row in zip(tokens, found.outputs[0][0], strict=True):
            index = 0 if np.isnan(token) else int(np.clip(token, -(2**62), 2**62))
            # The detour adds the rows once; an index that is still negative counts from the back.
            index = index + len(table) if index < 0 else index
            inside = -len(table) <= index < len(table)
            np.testing.assert_array_equal(row, table[index] if inside else 0)
    assert len(fuel) == 1
