"""Free sizes of a model that is planned: those of the samples."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from cloister.errors import PlanError, UnsupportedError
from cloister.graph.graph import BATCH
from cloister.graph.onnx.read import from_model
from cloister.graph.onnx.specialise import specialise
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from nets import Net


def graph_of(net: Net, *outputs: str):
    return prepare(from_model(net.model(*outputs), name="net"))


def taking(net: Net, name: str, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> str:
    net.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
    return name


def tokens():
    """A dense layer for each token, and one for their mean."""
    net = Net()
    x = net.op("Relu", net.op("MatMul", taking(net, "x", "N", "T", 4), net.weights(4, 6)))
    return graph_of(net, net.gemm(net.op("ReduceMean", x, axes=[1], keepdims=0), 6, 3))


def begun():
    """A dense layer of all samples, and one of the first two: a shape without the batch."""
    net = Net()
    ends = [net.constant(np.array([end])) for end in (0, 2)]
    first = net.op("Slice", taking(net, "x", "N", 4), *ends)
    return graph_of(net, net.gemm("x", 4, 2), net.gemm(first, 4, 3))


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_plan_has_the_sizes_of_its_samples_and_keeps_the_model():
    model = tokens()
    plan = policies.slalom(model, calibration=samples(3, 7, 4))
    assert plan.graph.types["x"].shape == (None, 7, 4)
    assert (plan.template, plan.sizes) == (model, {"T": 7})
    assert len(plan.quantised) == 2
    assert plan.digest == policies.slalom(specialise(model, {"T": 7}),
                                          calibration=samples(3, 7, 4)).digest  # fmt: skip


def test_a_plan_for_other_sizes_has_the_same_ranges_and_nodes():
    plan = policies.slalom(tokens(), calibration=samples(3, 7, 4))
    other = policies.for_sizes(plan, {"T": 5})
    assert other.graph.types["x"].shape == (None, 5, 4)
    assert (other.ranges, other.sizes) == (plan.ranges, {"T": 5})
    for name, node in plan.quantised.items():
        again = other.quantised[name]
        np.testing.assert_array_equal(again.linear.weights, node.linear.weights)
        assert again.x_scale == node.x_scale


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded"])
def test_a_plan_for_other_sizes_is_the_one_that_its_ranges_give(policy):
    plan = policies.make(policy, tokens(), calibration=samples(3, 7, 4))
    other, model = policies.for_sizes(plan, {"T": 5}), specialise(plan.template, {"T": 5})
    assert other.digest == policies.from_ranges(policy, model, ranges=plan.ranges).digest
    for name, node in other.quantised.items():
        assert node.linear.weights is plan.quantised[name].linear.weights


def test_a_layer_that_covers_the_calibrated_image_alone_keeps_its_range():
    net = Net()
    taking(net, "x", "N", 3, "H", 4)
    model = graph_of(net, net.conv("x", 3, 5, (2, 4)))
    x = samples(6, 3, 2, 4) * np.float32([1000, 1, 1]).reshape(1, 3, 1, 1)
    plan = policies.slalom(model, calibration=x)
    ((name, ranges),) = plan.ranges.items()
    assert len(ranges) == 3 * 2 * 4
    assert policies.for_sizes(plan, {"H": 6}).ranges == {name: (max(ranges),)}


def test_what_stays_inside_does_so_at_every_size():
    model = tokens()
    inside = [n.name for n in specialise(model, {"T": 7}).nodes if n.op == "Gemm"]
    plan = policies.make("slalom", model, calibration=samples(3, 7, 4), inside=inside)
    other = policies.for_sizes(plan, {"T": 9})
    assert other.protections == plan.protections


def test_a_batch_is_bound_too_where_more_goes_out():
    plan = policies.slalom(begun(), calibration=samples(2, 4))
    assert (plan.sizes, plan.graph.batch, len(plan.quantised)) == ({BATCH: 2}, 2, 2)
    # A worker is sent rows of what five samples and two have in common.
    other = policies.for_sizes(plan, {BATCH: 5})
    assert (other.graph.batch, len(other.quantised)) == (1, 2)


@pytest.mark.parametrize("policy", ["enclave", "open"])
def test_nothing_is_bound_where_nothing_becomes_integers(policy):
    plan = policies.make(policy, tokens())
    assert (plan.graph.free_sizes, plan.template) == (("T",), None)


def test_a_free_size_without_samples_is_named():
    model = tokens()
    plan = policies.slalom(model, calibration=samples(3, 7, 4))
    for call in (
        lambda: policies.make("slalom", model),
        lambda: policies.from_ranges("slalom", model, ranges=plan.ranges),
    ):
        with pytest.raises(UnsupportedError, match=r"free size 'T'.*dims=.*--dim T=SIZE"):
            call()
    lean = plan.without_float_weights()
    assert lean.template is None
    with pytest.raises(PlanError, match="no model with free sizes"):
        policies.for_sizes(lean, {"T": 3})


def test_a_written_plan_has_its_sizes_alone(tmp_path):
    plan = policies.slalom(tokens(), calibration=samples(3, 7, 4))
    plan.save(tmp_path / "net.plan")
    again = type(plan).load(tmp_path / "net.plan")
    assert (again.digest, again.template, again.sizes) == (plan.digest, None, {})
