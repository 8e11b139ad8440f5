import numpy as np
import onnxruntime as ort
import pytest

import nets
from cloister.base.rng import InsecureSeededRandom
from cloister.graph.onnx import read
from cloister.graph.ops.depthwise import depthwise_window
from cloister.graph.passes import normalise
from cloister.plan import placement, policies
from cloister.plan.placement import Costs, default_costs, measure, place, placements
from cloister.plan.protection import BLINDED_VERIFIED, ENCLAVE, VERIFIED
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Fused, Local
from cloister.trusted.session import Session
from trusted.links import DirectLink


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


def convolutions(graph):
    return [node for node in graph.nodes if depthwise_window(graph, node) is not None]


def layer(channels, size, kernel):
    net = nets.Net()
    x = net.conv(net.input("image", 3, size, size), 3, channels, (1, 1))
    half = kernel // 2
    x = net.conv(x, channels, channels, (kernel, kernel), group=channels, pads=[half] * 4)
    return graph_of(net.model(net.conv(x, channels, 4, (1, 1))))


def test_both_sides_are_counted():
    graph = layer(channels=8, size=10, kernel=3)
    (node,) = convolutions(graph)
    found = place(graph, node, Costs(crossing_ns=2.0, exchange_us=1.0, tap_ns=0.5))
    assert found.inside_us == pytest.approx(1e-3 * 0.5 * 9 * 800)
    assert found.outside_us == pytest.approx(1e-3 * 2.0 * 1600 + 1.0)
    assert found.inside is (found.inside_us < found.outside_us)


def test_large_kernels_go_out_and_small_ones_stay():
    small, large = layer(64, 56, 3), layer(64, 56, 7)
    for graph, inside in ((small, True), (large, False)):
        protections = policies.assign(graph, "slalom")
        (node,) = convolutions(graph)
        assert (protections[node.name] is ENCLAVE) is inside
        (placed,) = placements(graph, protections, default_costs(BLINDED_VERIFIED))
        assert placed.inside is inside
        assert (placed.inside_us < placed.outside_us) is inside


def test_something_always_goes_out():
    net = nets.Net()
    graph = graph_of(net.model(net.conv(net.input("image", 6, 9, 9), 6, 6, group=6)))
    assert policies.assign(graph, "slalom") == dict.fromkeys(
        (node.name for node in graph.nodes), BLINDED_VERIFIED
    )


def test_only_one_filter_per_channel_inside_the_image():
    separable = graph_of(nets.separable())
    assert len(convolutions(separable)) == 1, "a group convolution is not depthwise"
    net = nets.Net()
    x = net.input("image", 4, 5, 5)
    twice = net.op("Conv", x, net.weights(8, 1, 3, 3), group=4)
    outside = net.op("Conv", x, net.weights(4, 1, 1, 1), group=4, pads=[2, 2, 2, 2])
    graph = graph_of(net.model(twice, outside))
    assert convolutions(graph) == []


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded"])
def test_inside_it_is_part_of_the_passes(policy, monkeypatch):
    monkeypatch.setattr(placement, "default_costs", lambda _: Costs(1.0, 1e6, 0.01))
    model = nets.depthwise()
    graph, feeds = graph_of(model), nets.samples(model, 5)
    plan = policies.make(policy, graph, calibration=feeds)
    program = compile_plan(plan)
    assert not any(isinstance(step, Local) for step in program.steps)
    fused = [s for s in program.steps if isinstance(s, Fused) and s.epilogue.depthwise]
    assert len(fused) == len(convolutions(graph)) == 4
    with Session(plan, workers=[DirectLink()]) as session:
        outputs = session.run(feeds).outputs
    reference = ort.InferenceSession(model.SerializeToString())
    for name, exact in zip(outputs, reference.run(list(outputs), feeds), strict=True):
        assert np.abs(outputs[name] - exact).max() < 0.02 * np.abs(exact).max()


def test_without_remote_nodes_onnx_runtime_computes_it():
    plan = policies.make("enclave", graph_of(nets.depthwise()))
    steps = compile_plan(plan).steps
    assert not any(isinstance(s, Fused) and s.epilogue.depthwise for s in steps)


def test_costs_of_this_machine_are_measured():
    for protection in (BLINDED_VERIFIED, VERIFIED):
        costs = measure(protection, rng=InsecureSeededRandom(1))
        assert 0 < costs.crossing_ns < 1000
        assert 0 < costs.tap_ns < 1000
