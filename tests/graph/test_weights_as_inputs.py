from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

import nets
from cloister.graph import weights_as_inputs
from cloister.graph.onnx.read import from_model
from cloister.graph.weights_as_inputs import WeightsAsInputs


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("build", nets.ALL.values(), ids=nets.ALL)
def test_weights_that_are_fed_give_the_model_s_outputs(build, optimised, monkeypatch):
    monkeypatch.setattr(weights_as_inputs, "LARGE_BYTES", 256)
    model = build()
    feeds = nets.samples(model, 3)
    session = WeightsAsInputs(from_model(model, name="net"), optimised=optimised)
    assert session._large
    plain = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for found, wanted in zip(session.run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_inner_values_by_name():
    model = nets.chain()
    graph = from_model(model, name="net")
    inner = graph.nodes[0].outputs[0]
    session = WeightsAsInputs(graph, outputs=(inner, *graph.outputs))
    found = session.run([inner], nets.samples(model, 2))
    assert len(found) == 1
    assert found[0].shape == (2, *graph.types[inner].shape[1:])


def test_weights_need_no_types_in_the_graph(monkeypatch):
    monkeypatch.setattr(weights_as_inputs, "LARGE_BYTES", 256)
    model = nets.chain()
    graph = from_model(model, name="net")
    bare = replace(graph, types={name: graph.types[name] for name in graph.inputs})
    assert WeightsAsInputs(bare)._large
