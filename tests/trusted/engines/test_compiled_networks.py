"""Whole networks, compiled and run by every engine."""

import numpy as np
import pytest

import nets
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.trusted.engines.module_engine import start_engine
from cloister.trusted.engines.processor import runnable_builds
from codegen.modules import compiled

pytest.importorskip("ziglang")
pytest.importorskip("wasmtime")

NETS = ("branches", "depthwise", "residual", "sequence", "text")


def given(graph, rows, seed=1):
    """Samples of a graph whose inputs begin with the batch."""
    rng = np.random.default_rng(seed)
    shapes = [graph.types[name] for name in graph.inputs]
    made = [rng.standard_normal((rows, *one.shape[1:])) for one in shapes]
    return [array.astype(one.dtype) for array, one in zip(made, shapes, strict=True)]


def run(module, kind, inputs, **more):
    with start_engine(module, kind, **more) as engine:
        return engine.run(inputs)


@pytest.mark.parametrize("name", NETS)
def test_engines_give_the_same_bits_and_those_of_the_graph(name):
    """Of separate roundings: native on every instruction set, and WebAssembly."""
    graph = from_model(getattr(nets, name)(), name=name)
    module = compiled(graph, builds=("native", "wasm", "onnx"), contraction="off")
    inputs = given(graph, 3)
    wasm = run(module, "wasm", inputs)
    for build in runnable_builds():
        for one, other in zip(run(module, "native", inputs, build=build), wasm, strict=True):
            assert one.tobytes() == other.tobytes()
    onnx = run(module, "onnxruntime", inputs)
    for row in range(3):
        sample = {n: x[row : row + 1] for n, x in zip(graph.inputs, inputs, strict=True)}
        expected = interpret(graph, sample)
        for at, output in enumerate(graph.outputs):
            np.testing.assert_allclose(wasm[at][row], expected[output][0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(onnx[at][row], expected[output][0], rtol=1e-4, atol=1e-5)


def test_contracted_builds_have_the_same_bits_on_every_instruction_set():
    graph = from_model(nets.residual(), name="residual")
    module = compiled(graph, builds=("native",), contraction="fma")
    inputs = given(graph, 2)
    found = {run(module, "native", inputs, build=build)[0].tobytes() for build in runnable_builds()}
    assert len(found) == 1


@pytest.mark.parametrize("name", ["residual", "sequence"])
def test_fuel_does_not_depend_on_the_inputs(name):
    graph = from_model(getattr(nets, name)(), name=name)
    module = compiled(graph, builds=("wasm",), contraction="off")
    (x,) = given(graph, 2)
    batch = np.concatenate([x, -abs(x), abs(x), 0 * x])
    with start_engine(module, "wasm", fuel=True) as engine:
        engine.run([batch])
        assert len(engine.fuel) == 8
        assert len(set(engine.fuel)) == 1
