"""Constants that are inputs too: a caller may give them, and need not."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloister.errors import ModelError, ShapeError
from cloister.graph import graph_file
from cloister.graph.input_files import read_inputs
from cloister.graph.interpreter import interpret
from cloister.graph.legality import check
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.trusted.session import Session

RNG = np.random.default_rng(2)
X = RNG.standard_normal((5, 4)).astype(np.float32)
W = RNG.standard_normal((4, 3)).astype(np.float32)
SCALE, LEAST = np.full(4, 0.5, np.float32), np.array(-0.25, np.float32)
OTHER = {"scale": np.arange(4, dtype=np.float32) / 4, "least": np.array(0.1, np.float32)}
DEFAULTS = {"scale": SCALE, "least": LEAST}


def model(*, ir=8, weights=False, batch="N", opset=17):
    """y = max(x * scale, least) w; scale and least are inputs with a default."""
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["h"]),
        helper.make_node("Max", ["h", "least"], ["g"]),
        helper.make_node("Identity", ["w"], ["v"]),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    constants = {"w": W, **DEFAULTS}
    listed = constants if weights else DEFAULTS
    given = [
        *(helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in listed.items()),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def onnx_runtime(built, feeds):
    session = ort.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def graph_of(built):
    return prepare(from_model(built, name="net"))


@pytest.mark.parametrize("policy", ["enclave", "open", "slalom", "verified"])
@pytest.mark.parametrize(
    "given", [{}, {"scale": OTHER["scale"]}, OTHER], ids=["none", "one", "all"]
)
def test_a_default_holds_until_the_caller_gives_another_value(policy, given):
    graph = graph_of(model())
    assert set(graph.inputs) == {"x", "scale", "least"}
    plan = policies.make(policy, graph, calibration={"x": X, **given})
    with Session(plan, batch=2) as session:
        result = session.run({"x": X, **given})
    wanted = onnx_runtime(model(), {"x": X, **given})
    np.testing.assert_allclose(result.outputs["y"], wanted, atol=0.02)
    assert any(row.bytes_to_worker for row in result.report.layers) == (policy != "enclave")


def test_one_array_is_the_required_input():
    graph = graph_of(model())
    wanted = onnx_runtime(model(), {"x": X})
    with Session(policies.enclave(graph)) as session:
        np.testing.assert_allclose(session.run(X).outputs["y"], wanted, rtol=1e-5)
    np.testing.assert_allclose(interpret(graph, {"x": X})["y"], wanted, rtol=1e-5)


def test_a_default_is_no_sample_of_a_fixed_batch():
    built = model(batch=4)
    graph = graph_of(built)
    assert graph.batch is None
    with Session(policies.enclave(graph)) as session:
        found = session.run({"x": X, **OTHER}).outputs["y"]
    np.testing.assert_allclose(found[:4], onnx_runtime(built, {"x": X[:4], **OTHER}), rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"scale": np.zeros(3, np.float32)}, {"w": W}, {"scales": SCALE}])
def test_another_value_has_the_default_s_shape_and_an_input_s_name(wrong):
    with (
        Session(policies.enclave(graph_of(model()))) as session,
        pytest.raises(ShapeError, match=next(iter(wrong))),
    ):
        session.run({"x": X, **wrong})
    with Session(policies.enclave(graph_of(model()))) as session, pytest.raises(ShapeError):
        session.run(OTHER)


def test_a_file_that_lists_its_weights_lists_all_constants():
    assert graph_of(model(weights=True)).inputs == ("x",)
    assert graph_of(model(ir=3, opset=8)).inputs == ("x",)


def test_an_axis_with_a_default_keeps_a_batch_whole():
    built = helper.make_model(
        helper.make_graph(
            [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
            "net",
            [
                helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
                helper.make_tensor_value_info("axes", TensorProto.INT64, [1]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.array([1]), "axes")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    with Session(policies.enclave(graph_of(built)), batch=2) as session:
        for axis in (0, 1):
            feeds = {"x": X, "axes": np.array([axis])}
            found = session.run(feeds).outputs["y"]
            np.testing.assert_allclose(found, onnx_runtime(built, feeds), rtol=1e-5)


def test_files_of_graphs_and_plans_keep_defaults(tmp_path):
    graph = graph_of(model())
    again = graph_file.from_bytes(graph_file.to_bytes(graph))
    assert set(again.defaults) == set(DEFAULTS)
    for name, array in DEFAULTS.items():
        np.testing.assert_array_equal(again.defaults[name], array)
    policies.slalom(graph, calibration={"x": X}).save(tmp_path / "net.plan")
    with Session(Plan.load(tmp_path / "net.plan")) as session:
        found = session.run({"x": X}).outputs["y"]
    np.testing.assert_allclose(found, onnx_runtime(model(), {"x": X}), atol=0.02)


@pytest.mark.parametrize("given", [{}, {"least": OTHER["least"]}])
def test_input_files_may_leave_defaults_out(tmp_path, given):
    np.savez(tmp_path / "x.npz", x=X, **given)
    arrays = read_inputs(graph_of(model()), [tmp_path / "x.npz"]).arrays
    for name, array in {"x": X, **DEFAULTS, **given}.items():
        np.testing.assert_array_equal(arrays[name], array)
    np.save(tmp_path / "x.npy", X)
    np.testing.assert_array_equal(
        read_inputs(graph_of(model()), [tmp_path / "x.npy"]).arrays["x"], X
    )


def test_a_default_of_another_shape_is_no_legal_graph():
    graph = graph_of(model())
    graph.defaults["scale"] = np.zeros(3, np.float32)
    with pytest.raises(ModelError, match="'scale': its default"):
        check(graph)


def test_onnx_runtime_has_the_same_inputs():
    built = model()
    session = ort.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_overridable_initializers()} == set(DEFAULTS)
