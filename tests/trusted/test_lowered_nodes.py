"""Linear operators in other forms: what goes to a worker computes what ONNX Runtime does."""

import os

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, note, reject, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from cloister.graph.graph import Graph
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.graph.ort_session import ORT_ERRORS
from cloister.graph.passes.normalise import prepare
from cloister.graph.passes.volumes import MAX_GROWTH
from cloister.plan import policies
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.random_models import runtime

EXAMPLES = int(os.environ.get("CLOISTER_EXAMPLES", "40"))
EXACT, FIXED_POINT = 1e-5, 0.01
"""Largest differences from ONNX Runtime, of the largest value: in float32, and of sent nodes."""
SAMPLES = 3
RUNTIME = "com.microsoft"

random_nodes = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CLOISTER_EXAMPLES" not in os.environ,
    database=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
)


def model(
    nodes: list[onnx.NodeProto],
    shape: list[int | str],
    constants: dict[str, np.ndarray],
    *,
    dtype: type = np.float32,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from `x` to `y`, which may have operators of ONNX Runtime's own."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(RUNTIME, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linear_nodes(graph: Graph) -> list[onnx.NodeProto]:
    return [node for node in graph.nodes if is_linear(graph, node)]


def assert_near(found: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    wanted = wanted.astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite].astype(np.float64), wanted[~finite])
    difference = np.abs(found[finite] - wanted[finite]).max(initial=0.0)
    assert difference <= tolerance * np.abs(wanted[finite]).max(initial=1.0)


def check(proto: onnx.ModelProto, x: np.ndarray, *, sent: int = 1, exact: float = EXACT) -> Graph:
    """The prepared graph; all of its policies' outputs are compared with the model's."""
    (wanted,) = runtime(proto).run(None, {"x": x})
    graph = prepare(from_model(proto, name="net"))
    assert len(linear_nodes(graph)) == sent
    assert_near(interpret(graph, {"x": x})["y"], wanted, exact)
    for policy in ("enclave", *(("slalom", "verified") if sent else ())):
        plan = policies.make(policy, graph, calibration=None if policy == "enclave" else x)
        with Session(plan, workers=[InProcessLink(Engine().handle)], batch=2) as session:
            result = session.run(x)
        assert_near(result.outputs["y"], wanted, exact if policy == "enclave" else FIXED_POINT)
        messages = sum(1 for row in result.report.layers if row.bytes_to_worker)
        assert messages == (0 if policy == "enclave" else sent)
    return graph


# ---- convolutions over three axes


def crossing(graph: Graph) -> int:
    shapes = [geometry(graph, node) for node in linear_nodes(graph)]
    return sum(one.in_elements + one.out_elements for one in shapes)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@random_nodes
@given(data=st.data())
def test_convolutions_over_three_axes(op, data):
    def several(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(3)]

    group = data.draw(st.integers(1, 2))
    channels, out = group * data.draw(st.integers(1, 2)), group * data.draw(st.integers(1, 3))
    kernel, size = several(1, 3), several(1, 6)
    attributes = {"strides": several(1, 3), "dilations": several(1, 2), "group": group}
    attributes["pads"] = several(0, 2) + several(0, 2)
    if op == "ConvTranspose":
        attributes["output_padding"] = several(0, 1)
        shape = (channels, out // group, *kernel)
    else:
        shape = (out, channels // group, *kernel)
    inputs, constants = ["x", "w"], {"w": values(*shape)}
    if data.draw(st.booleans()):
        inputs.append("b")
        constants["b"] = values(out, seed=1)
    node = helper.make_node(op, inputs, ["y"], name="cube", kernel_shape=kernel, **attributes)
    opset = data.draw(st.sampled_from([9, 10, 17]))
    proto = model([node], ["N", channels, *size], constants, opset=opset)
    note(onnx.printer.to_text(proto))
    x = values(SAMPLES, channels, *size, seed=2)
    try:
        (wanted,) = runtime(proto).run(None, {"x": x})
    except ORT_ERRORS:
        reject()  # no kernel for these attributes
    graph = prepare(from_model(proto, name="net"))
    if not wanted.size or not linear_nodes(graph):
        reject()  # one that grows too much
    graph = check(proto, x)
    assert crossing(graph) <= MAX_GROWTH * (x[0].size + wanted[0].size)


@pytest.mark.parametrize(("kernel", "most"), [((3, 1, 1), 1.5), ((3, 3, 3), 4), ((1, 3, 3), 1.5)])
def test_the_depth_is_the_axis_for_which_the_fewest_numbers_cross(kernel, most):
    pads = [(k - 1) // 2 for k in kernel] * 2
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="cube", pads=pads)
    proto = model([node], ["N", 4, 8, 12, 10], {"w": values(4, 4, *kernel)})
    graph = check(proto, values(2, 4, 8, 12, 10))
    assert crossing(graph) <= most * 2 * 4 * 8 * 12 * 10


def test_a_convolution_that_would_grow_too_much_stays_inside():
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="cube", pads=[8] * 6)
    proto = model([node], ["N", 1, 8, 8, 8], {"w": values(1, 1, 17, 17, 17)})
    check(proto, values(1, 1, 8, 8, 8), sent=0)


def test_scales_behind_a_convolution_over_three_axes_become_its_own():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["v"], name="cube"),
        helper.make_node("BatchNormalization", ["v", "s", "b", "m", "q"], ["u"], name="norm"),
        helper.make_node("Relu", ["u"], ["y"], name="relu"),
    ]
    constants = {"w": values(3, 2, 2, 2, 2)} | {n: values(3, seed=i) for i, n in enumerate("sbm")}
    constants["q"] = np.array([1, 2, 0.5], np.float32)
    graph = check(model(nodes, ["N", 2, 4, 5, 3], constants), values(2, 2, 4, 5, 3))
    assert "BatchNormalization" not in {node.op for node in graph.nodes}


# ---- products with a constant


def product(
    op: str, rest: list[int], *given: str | np.ndarray, batch: int = 0, **attributes: object
) -> onnx.ModelProto:
    """A model of one node that reads `x` and constants, in the order given.

    `rest` are the sizes of x without the batch, which the node gets on the axis `batch`.
    """
    named = {f"c{i}": one for i, one in enumerate(given) if isinstance(one, np.ndarray)}
    inputs = [one if isinstance(one, str) else f"c{i}" for i, one in enumerate(given)]
    nodes = [helper.make_node(op, inputs, ["y"], name="cube", **attributes)]
    if batch:
        order = [*range(1, len(rest) + 1)]
        order.insert(batch, 0)
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["turned"], name="turn", perm=order))
        nodes[1].input[inputs.index("x")] = "turned"
    return model(nodes, ["N", *rest], named)


@random_nodes
@given(data=st.data())
def test_matrix_products(data):
    """Heads, repeated axes, the constant on either side, vectors, the batch at any place."""
    rows, terms, columns = (data.draw(st.integers(1, 4)) for _ in range(3))
    axes = [data.draw(st.integers(1, 3)) for _ in range(data.draw(st.integers(0, 2)))]
    batch = data.draw(st.integers(0, len(axes)))
    constant = [data.draw(st.sampled_from([1, size])) for size in axes]
    mine = [data.draw(st.sampled_from([1, size])) for size in axes]
    constant.insert(batch, 1)
    constant = constant[data.draw(st.integers(0, len(constant))) :]
    first = data.draw(st.booleans())
    matrix = [columns, terms] if first else [terms, columns]
    if not any(size > 1 for size in constant):
        constant, matrix = constant[:0], data.draw(st.sampled_from([matrix, [terms]]))
    image = [terms, rows] if first else [rows, terms]
    rest = [*mine, *image]
    factors = ["x", values(*constant, *matrix)]
    proto = product("MatMul", rest, *(factors[::-1] if first else factors), batch=batch)
    note(onnx.printer.to_text(proto))
    check(proto, values(SAMPLES, *rest))


EQUATIONS = {
    "nhd,hdm->nm": ((2, 3), (2, 3, 4)),
    "ntd,dhk->nhtk": ((5, 4), (4, 2, 3)),
    "abc,cd->abd": ((3, 4), (4, 5)),
    "nhtd,hde->nhte": ((2, 3, 4), (2, 4, 5)),
    "de,nte->ntd": ((3, 4), (6, 4)),
    "n...d,dm->n...m": ((2, 3, 4), (4, 5)),
    "...i,ij": ((3, 4), (4, 5)),
    "nij,jk": ((3, 4), (4, 5)),
    "nij,ij->n": ((3, 4), (3, 4)),
    "nihj,hkjz->nikh": ((3, 2, 4), (2, 5, 4, 3)),
    "n i, i j -> j n": ((3,), (3, 4)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_with_a_constant(equation):
    rest, constant = EQUATIONS[equation]
    factors, x = ["x", values(*constant)], values(SAMPLES, *rest, seed=1)
    if equation == "de,nte->ntd":
        factors, x = [values(3, 4), "x"], values(SAMPLES, 6, 4, seed=1)
    check(product("Einsum", [*x.shape[1:]], *factors, equation=equation), x)


@pytest.mark.parametrize("equation", ["nii,ij->nj", "nij,jk->nk", "nij,nj->ij", "nij,j->nij"])
def test_what_is_no_product_of_each_input_with_a_constant_stays_inside(equation):
    constant = values(3, 3)[0] if equation == "nij,j->nij" else values(3, 3)
    proto = product("Einsum", [3, 3], "x", constant, equation=equation)
    check(proto, values(SAMPLES, 3, 3), sent=0)


GEMMS = {
    "transposed input": (1, ("x", values(4, 3)), {"transA": 1}),
    "transposed input with alpha": (1, ("x", values(4, 3)), {"transA": 1, "alpha": 0.5}),
    "transposed both": (1, ("x", values(3, 4)), {"transA": 1, "transB": 1}),
    "constant first": (0, (values(3, 4), "x"), {"transB": 1, "alpha": -2.0}),
    "constant first with bias": (0, (values(3, 4), "x", values(3, 1)), {"transB": 1}),
    "transposed input with bias": (
        1, ("x", values(4, 3), values(3)), {"transA": 1, "beta": 3.0},
    ),
    "bias of one": (0, ("x", values(4, 3), values(1, 1)), {"beta": -0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", GEMMS)
def test_odd_forms_of_gemm(case):
    batch, given, attributes = GEMMS[case]
    check(product("Gemm", [4], *given, batch=batch, **attributes), values(SAMPLES, 4, seed=1))


# ---- biases


def test_a_computed_bias_is_added_behind_the_product():
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["b"], name="mean", axes=[0, 2, 3], keepdims=0),
        helper.make_node("Conv", ["x", "w", "b"], ["y"], name="cube"),
    ]
    check(model(nodes, [3, 2, 4, 5], {"w": values(2, 2, 2, 2)}), values(3, 2, 4, 5))


@pytest.mark.parametrize("op", ["Gemm", "Conv", "ConvTranspose"])
def test_an_infinite_bias_does_not_reach_a_linear_node(op):
    bias = np.array([0.5, -np.inf, np.inf], np.float32)
    weights = values(4, 3) if op == "Gemm" else values(3, 4, 1) if op == "Conv" else values(4, 3, 1)
    rest = [4] if op == "Gemm" else [4, 5]
    check(product(op, rest, "x", weights, bias), values(SAMPLES, *rest))


@pytest.mark.parametrize("mask", [-np.inf, np.nan, 3e38])
def test_a_mask_is_not_folded_into_weights_or_a_bias(mask):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="cube"),
        helper.make_node("Add", ["a", "m"], ["b"], name="mask"),
        helper.make_node("Add", ["b", "m"], ["y"], name="again"),
    ]
    constants = {"w": values(4, 3), "m": np.array([0, mask, 1], np.float32)}
    graph = check(model(nodes, ["N", 4], constants), values(SAMPLES, 4))
    for array in graph.constants.values():
        assert np.isfinite(array).all() or array.shape == (3,)
    (node,) = linear_nodes(graph)
    assert all(np.isfinite(graph.constants[value]).all() for value in node.inputs[1:])


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Einsum"])
def test_float64_is_sent_as_float32_and_stays_itself_inside(op):
    attributes = {"equation": "ni,ij->nj"} if op == "Einsum" else {}
    node = helper.make_node(op, ["x", "w"], ["y"], name="cube", **attributes)
    weights, x = (values(*s).astype(np.float64) for s in ((4, 3), (SAMPLES, 4)))
    proto = model([node], ["N", 4], {"w": weights}, dtype=np.float64)
    check(proto, x + 1e-12, sent=0, exact=1e-15)
    graph = prepare(from_model(proto, name="net"))
    for policy in ("slalom", "verified"):
        plan = policies.make(policy, graph, calibration=x)
        with Session(plan, workers=[InProcessLink(Engine().handle)], batch=2) as session:
            result = session.run(x)
        assert_near(result.outputs["y"], runtime(proto).run(None, {"x": x})[0], FIXED_POINT)
        assert sum(1 for row in result.report.layers if row.bytes_to_worker) == 1


# ---- half precision


HALF = 1e-3
"""Of float16: its step is 2^-11 of a number."""


@pytest.mark.parametrize("op", ["Conv", "MatMul", "Gemm", "Einsum"])
def test_products_in_half_precision(op):
    shape, rest = ((3, 2, 3, 3), [2, 6, 5]) if op == "Conv" else ((4, 3), [4])
    given: list[np.ndarray] = [values(*shape).astype(np.float16)]
    if op in ("Conv", "Gemm"):
        given.append(values(3, seed=3).astype(np.float16))
    attributes = {"equation": "ni,ij->nj"} if op == "Einsum" else {}
    nodes = [
        helper.make_node(op, ["x", *"wb"[: len(given)]], ["v"], name="cube", **attributes),
        helper.make_node("Relu", ["v"], ["y"], name="relu"),
    ]
    constants = dict(zip("wb", given, strict=False))
    proto = model(nodes, ["N", *rest], constants, dtype=np.float16)
    check(proto, values(SAMPLES, *rest).astype(np.float16), exact=HALF)


def test_a_result_that_half_precision_cannot_hold_is_infinite():
    weights = np.full((2, 2), 300, np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="cube")
    proto = model([node], ["N", 2], {"w": weights}, dtype=np.float16)
    check(proto, np.array([[200, 200], [-200, -200], [90, 110]], np.float16), exact=HALF)


# ---- operators of ONNX Runtime's own

ACTIVATIONS = {
    "Relu": [], "Tanh": [], "Sigmoid": [], "LeakyRelu": [0.1], "HardSigmoid": [0.3, 0.4],
    "Clip": [-0.5, 0.5],
}  # fmt: skip


@pytest.mark.parametrize("opset", [10, 17])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fused_convolution(activation, opset):
    numbers = {"activation_params": ACTIVATIONS[activation]} if ACTIVATIONS[activation] else {}
    node = helper.make_node(
        "FusedConv", ["x", "w", "b", "z"], ["y"], name="cube", domain=RUNTIME, strides=[2, 1],
        auto_pad="SAME_UPPER", activation=activation, **numbers,
    )  # fmt: skip
    constants = {"w": values(3, 2, 3, 3), "b": values(3, seed=1), "z": values(1, 3, 3, 4, seed=2)}
    constants["z"] = np.repeat(constants["z"], SAMPLES, axis=0)
    proto = model([node], [SAMPLES, 2, 5, 4], constants, opset=opset)
    check(proto, values(SAMPLES, 2, 5, 4))


@pytest.mark.parametrize("flags", [{}, {"transA": 1}, {"transB": 1}, {"transA": 1, "transB": 1}])
@pytest.mark.parametrize("first", [False, True])
def test_a_fused_product(flags, first):
    factors = {"x": (4, 3) if flags.get("transB" if first else "transA") else (3, 4)}
    factors["w"] = (5, 4) if flags.get("transA" if first else "transB") else (4, 5)
    if first:
        factors = {name: shape[::-1] for name, shape in factors.items()}
    names = ["w", "x"] if first else ["x", "w"]
    node = helper.make_node("FusedMatMul", names, ["y"], "cube", domain=RUNTIME, alpha=0.5, **flags)
    proto = model([node], ["N", *factors["x"]], {"w": values(*factors["w"])})
    check(proto, values(SAMPLES, *factors["x"]))


def test_a_fused_gemm():
    node = helper.make_node(
        "FusedGemm", ["x", "w", "b"], ["y"], "cube", domain=RUNTIME, transB=1, alpha=0.5,
        activation="LeakyRelu", activation_alpha=0.2,
    )  # fmt: skip
    check(model([node], ["N", 4], {"w": values(3, 4), "b": values(3)}), values(SAMPLES, 4))


def test_linear_nodes_behind_operators_whose_shapes_onnx_does_not_infer():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("BiasGelu", ["a", "b"], ["c"], name="gelu", domain=RUNTIME),
        helper.make_node("MatMul", ["c", "v"], ["d"], name="second"),
        helper.make_node("QuickGelu", ["d"], ["e"], name="quick", domain=RUNTIME),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="third"),
    ]
    constants = {"w": values(4, 6), "b": values(6), "v": values(6, 4)}
    check(model(nodes, ["N", 5, 4], constants), values(SAMPLES, 5, 4), sent=3)
