"""Sessions whose inputs have other sizes than those that the plan was calibrated on."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from cloister.base.rng import SystemRandom
from cloister.errors import (
    PlanError,
    RangeError,
    ShapeError,
    UnsupportedError,
    VerificationError,
)
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.session import Session
from cloister.trusted.sized_plans import MOST_PLANS
from nets import Net
from trusted.links import DirectLink


def tokens() -> onnx.ModelProto:
    """Dense layers for each token, attention between them, and one for their mean."""
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 4]))
    x = net.op("Relu", net.op("MatMul", "x", net.weights(4, 6)))
    scores = net.op("Softmax", net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1])), axis=-1)
    x = net.op("MatMul", net.op("MatMul", scores, x), net.weights(6, 6))
    return net.model(net.gemm(net.op("ReduceMean", x, axes=[1], keepdims=0), 6, 3))


def picture() -> onnx.ModelProto:
    """Convolutions of any picture, down and up again."""
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [-1, 3, -1, -1]))
    x = net.op("Relu", net.conv("x", 3, 6, strides=[2, 2], pads=[1] * 4))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", x, net.constant(np.zeros(0, np.float32)), scales, mode="nearest")
    return net.model(net.conv(x, 6, 2, pads=[1] * 4))


def mixing() -> onnx.ModelProto:
    """The first sample by a dense layer of its own: a batch that is a number in the plan."""
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]))
    ends = [net.constant(np.array([end])) for end in (0, 1)]
    first = net.gemm(net.op("Slice", "x", *ends), 4, 3)
    return net.model(net.gemm("x", 4, 2), first)


SIZES = {"tokens": (tokens, [(2, 7, 4), (3, 5, 4), (1, 1, 4)]),
         "picture": (picture, [(2, 3, 8, 10), (1, 3, 12, 6), (5, 3, 8, 10)]),
         "mixing": (mixing, [(1, 4), (5, 4)])}  # fmt: skip


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def typical(*shape: int) -> np.ndarray:
    """Samples with larger values than those that are run, so that nothing is clipped."""
    return 4 * values(shape)


def graph_of(model: onnx.ModelProto):
    return prepare(from_model(model, name="net"))


def plain(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})


def close(result, wanted: list[np.ndarray], limit: float) -> None:
    for got, right in zip(result.outputs.values(), wanted, strict=True):
        assert got.shape == right.shape
        assert np.linalg.norm(got - right) <= limit * np.linalg.norm(right)


@pytest.mark.parametrize("policy", ["enclave", "open", "slalom", "verified", "blinded"])
@pytest.mark.parametrize("net", SIZES)
def test_inputs_of_all_sizes_are_computed(net, policy):
    build, shapes = SIZES[net]
    model = build()
    needed = typical(*shapes[0]) if policies.needs_ranges(policy) else None
    plan = policies.make(policy, graph_of(model), calibration=needed)
    with Session(plan, batch=2) as session:
        for shape in (*shapes, shapes[0]):
            x = values(shape, seed=1)
            result = session.run(x)
            close(result, plain(model, x), 0.02 if needed is not None else 1e-5)


def test_a_plan_for_another_size_gives_the_bits_of_one_made_for_it():
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))
    other = policies.for_sizes(plan, {"T": 5})
    x = values((3, 5, 4), seed=1)
    with Session(plan, workers=[DirectLink()]) as both, Session(other) as alone:
        found, wanted = both.run(x), alone.run(x)
    for name, value in wanted.outputs.items():
        np.testing.assert_array_equal(found.outputs[name], value)
    assert found.report.pads_used == wanted.report.pads_used == 3
    assert (found.report.plans_made, wanted.report.plans_made) == (2, 1)
    assert [row.name for row in found.report.layers] == [r.name for r in wanted.report.layers]


def test_a_session_keeps_the_last_few_plans():
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))
    with Session(plan, workers=[DirectLink()]) as session:
        made = [session.run(values((1, t, 4))).report.plans_made for t in (7, 2, 3, 4, 2, 5, 3, 2)]
        assert made == [1, 2, 3, 4, 4, 5, 6, 6]
        assert len(session._plans.kept) == len(session._made[0].made) == MOST_PLANS


def test_no_request_id_is_used_twice_for_plans_of_several_sizes():
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))
    with Session(plan) as session:
        runs = [session.run(values((1, t, 4))) for t in (7, 2, 7, 3, 2)]
    used = [entry.request_id for run in runs for entry in run.transcript.entries]
    assert len(set(used)) == sum(len(plan.linear_nodes) for _ in runs)


@pytest.mark.parametrize("lanes", [1, 2])
def test_lanes_work_for_all_sizes(lanes):
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))
    with Session(plan, batch=2, lanes=lanes) as session:
        for length in (7, 3, 7):
            x = values((6, length, 4), seed=length)
            close(session.run(x), plain(model, x), 0.02)


def test_a_worker_that_lied_at_one_size_is_not_used_at_another():
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))

    def lie(target: int, answer: np.ndarray) -> np.ndarray:
        if answer.shape[2] == 5:
            answer.reshape(-1)[0] += 1
        return answer

    liar, honest = DirectLink("liar", lie=lie), DirectLink("honest")
    with Session(plan, workers=[liar, honest], lanes=1) as session:
        session.run(values((2, 7, 4)))
        own = session._executor.checks.vectors(0)
        with pytest.raises(VerificationError):
            session.run(values((2, 5, 4)))
        said = len(liar.seen)
        for length in (7, 5):
            result = session.run(values((2, length, 4)))
            close(result, plain(model, values((2, length, 4))), 0.02)
        assert (len(liar.seen), result.report.workers_lost) == (said, ("liar",))
        # The coefficients of every size are drawn anew.
        assert not own.b.any()


def test_pads_of_plans_of_several_sizes_have_keys_of_their_own():
    plan = policies.slalom(graph_of(tokens()), calibration=typical(2, 7, 4))
    with Session(plan, workers=[DirectLink()]) as session:
        session.run(values((1, 5, 4)))
        first, second = (one.pads for one in session._plans.kept)
        assert first.take(1)[0].key != second.take(1)[0].key
        assert first.plan_digest != second.plan_digest


def test_inputs_beyond_the_range_are_counted_at_every_size():
    plan = policies.slalom(graph_of(mixing()), calibration=typical(1, 4))
    x = values((5, 4))
    x[3] *= 100
    with Session(plan, workers=[DirectLink()], on_clip="ignore", batch=2) as session:
        report = session.run(x).report
    # A worker is sent one row for all five: the size that both layers have in common.
    assert report.inputs_beyond == (0, 1, 2, 3, 4)


def test_inputs_beyond_the_range_are_counted_in_every_part():
    plan = policies.slalom(graph_of(tokens()), calibration=typical(2, 7, 4))
    x = values((5, 5, 4))
    x[3] *= 100
    with Session(plan, workers=[DirectLink()], on_clip="ignore", batch=2) as session:
        assert session.run(x).report.inputs_beyond == (3,)


def test_a_size_of_zero_is_computed_inside():
    model = tokens()
    plan = policies.slalom(graph_of(model), calibration=typical(2, 7, 4))
    with Session(plan) as session:
        session.run(values((2, 7, 4)))
        result = session.run(np.zeros((2, 0, 4), np.float32))
    (found,), (wanted,) = result.outputs.values(), plain(model, np.zeros((2, 0, 4), np.float32))
    np.testing.assert_array_equal(found, wanted)


def test_given_pads_are_for_the_sizes_of_the_plan():
    plan = policies.slalom(graph_of(tokens()), calibration=typical(2, 7, 4))
    pads = InlinePads(plan, rng=SystemRandom())
    with Session(plan, workers=[DirectLink()], pads=pads) as session:
        session.run(values((2, 7, 4)))
        with pytest.raises(PlanError, match=r"inputs of T=5: the pads are for those of T=7"):
            session.run(values((2, 5, 4)))


def test_a_plan_of_a_file_is_for_its_own_sizes(tmp_path):
    plan = policies.slalom(graph_of(tokens()), calibration=typical(2, 7, 4))
    plan.save(tmp_path / "net.plan")
    with Session(Plan.load(tmp_path / "net.plan"), workers=[DirectLink()]) as session:
        session.run(values((2, 7, 4)))
        with pytest.raises(ShapeError, match=r"batch, 7, 4.*\(2, 5, 4\)"):
            session.run(values((2, 5, 4)))


def halved_and_doubled() -> onnx.ModelProto:
    """Joins an image with its halves of twice the size: only for even sizes."""
    net = Net()
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"]))
    x = net.conv("x", 3, 4, (1, 1))
    half = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    return net.model(net.op("Concat", x, net.op("Resize", half, "", scales), axis=1))


def test_sizes_that_a_model_does_not_take_are_named_with_the_remedy():
    graph, odd = graph_of(halved_and_doubled()), values((1, 3, 7, 6))
    with Session(policies.enclave(graph)) as session:
        session.run(values((1, 3, 8, 6)))
        with pytest.raises(RangeError, match=r"inputs of H=7, W=6: give others, pict.*--resize"):
            session.run(odd)
    with pytest.raises(UnsupportedError, match=r"samples of others .*--resize H,W"):
        policies.slalom(graph, calibration=odd)
