"""Models on integers give ONNX Runtime's results, although a worker multiplies their integers."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType

import integer_nets
import nets
from cloister.graph.ops.linear_nodes import is_linear
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.quantised import WRAP_LIMIT, Precision, static_bound
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from trusted.test_channel_scales import graph_of

POLICIES = ("slalom", "verified", "blinded")
QUANTISED = ("chain", "residual", "branches", "separable", "depthwise")


def outputs(plan, feeds):
    with Session(plan, workers=[InProcessLink(Engine().handle)]) as session:
        return session.run(feeds).outputs


def planned(model, policy, feeds):
    """A plan that sends every linear node out, whose integers are the model's own."""
    graph = graph_of(model)
    plan = policies.make(policy, graph, calibration=feeds, inside=())
    assert len(plan.linear_nodes) == sum(is_linear(graph, node) for node in graph.nodes)
    for node in plan.linear_nodes:
        assert node.x_qmax <= 255
        assert np.abs(node.linear.weights).max() <= 255
        assert static_bound(node) == node.bound < WRAP_LIMIT
    return plan


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("build", integer_nets.EXACT.values(), ids=integer_nets.EXACT)
def test_products_of_integers_have_the_bits_of_onnx_runtime(build, policy):
    model, feeds = build()
    found = outputs(planned(model, policy, feeds), feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("policy", ["enclave", "open"])
@pytest.mark.parametrize("build", integer_nets.EXACT.values(), ids=integer_nets.EXACT)
def test_whole_models_have_them_as_well(build, policy):
    model, feeds = build()
    found = outputs(policies.make(policy, graph_of(model)), feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("build", integer_nets.CLOSE.values(), ids=integer_nets.CLOSE)
def test_what_onnx_runtime_fuses_differs_in_the_last_place(build):
    model, feeds = build()
    found = outputs(planned(model, "slalom", feeds), feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("build", integer_nets.BLOCKS.values(), ids=integer_nets.BLOCKS)
def test_weights_in_blocks_get_integers_of_the_asked_width(build):
    model, feeds = build()
    plan = policies.make("slalom", graph_of(model), calibration=feeds)
    found = outputs(plan, feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        assert np.linalg.norm(found[name] - wanted) < 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("weights", [QuantType.QInt8, QuantType.QUInt8], ids=str)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("kind", list(QuantFormat), ids=str)
@pytest.mark.parametrize("net", QUANTISED)
def test_statically_quantised_networks_stay_within_one_step(
    net, kind, per_channel, weights, tmp_path
):
    model, feeds = integer_nets.static(
        net, tmp_path, kind=kind, per_channel=per_channel, weights=weights
    )
    exact = integer_nets.exact_outputs(model, feeds)
    before = graph_of(nets.ALL[net]())
    assert len(planned(model, "slalom", feeds).linear_nodes) == sum(
        is_linear(before, node) for node in before.nodes
    )
    for plan in (planned(model, "slalom", feeds), policies.make("enclave", graph_of(model))):
        found = outputs(plan, feeds)
        for name, wanted in exact.items():
            step = last_step(model, name)
            assert np.abs(found[name] - wanted).max() <= step * 1.001


def last_step(model: onnx.ModelProto, output: str) -> float:
    """The step of an output's last quantisation; 1/256 behind a softmax."""
    constants = {one.name: one for one in model.graph.initializer}
    (maker,) = (node for node in model.graph.node if output in node.output)
    if maker.op_type != "DequantizeLinear":
        return 1 / 256
    return float(numpy_helper.to_array(constants[maker.input[1]]).reshape(()))


@pytest.mark.parametrize("net", QUANTISED)
def test_dynamically_quantised_networks_are_those_of_onnx_runtime(net, tmp_path):
    model, feeds = integer_nets.dynamically(net, tmp_path)
    found = outputs(planned(model, "slalom", feeds), feeds)
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)


def test_the_asked_precision_and_the_samples_do_not_change_integers_of_its_own(tmp_path):
    model, feeds = integer_nets.static(
        "chain", tmp_path, kind=QuantFormat.QDQ, per_channel=True, weights=QuantType.QInt8
    )
    graph = graph_of(model)
    larger = {name: 9 * samples for name, samples in feeds.items()}
    plans = [
        policies.make("slalom", graph, calibration=samples, precision=precision)
        for samples, precision in ((feeds, Precision(12, 12)), (larger, Precision(8, 10)))
    ]
    for one, other in zip(*(plan.linear_nodes for plan in plans), strict=True):
        np.testing.assert_array_equal(one.linear.weights, other.linear.weights)
        np.testing.assert_array_equal(one.scale, other.scale)
        assert (one.x_scale, one.x_qmax) == (other.x_scale, other.x_qmax)


def test_a_plan_from_a_file_has_the_same_integers():
    model, feeds = integer_nets.EXACT["qlinear_conv"]()
    plan = planned(model, "slalom", feeds)
    loaded = Plan.from_bytes(plan.to_bytes())
    assert loaded.digest == plan.digest
    for name, wanted in outputs(plan, feeds).items():
        np.testing.assert_array_equal(outputs(loaded, feeds)[name], wanted)


def test_a_batch_with_one_scale_for_all_samples_is_not_cut():
    model, feeds = integer_nets.EXACT["dynamic"]()
    feeds["x"][3:] *= np.float32(100)
    plan = planned(model, "slalom", feeds)
    assert not plan.graph.separable
    with Session(plan, batch=2, workers=[InProcessLink(Engine().handle)]) as session:
        found = session.run(feeds).outputs
    for name, wanted in integer_nets.exact_outputs(model, feeds).items():
        np.testing.assert_array_equal(found[name], wanted)
