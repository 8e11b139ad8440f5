"""The comparison with float64: it passes what rounding explains, and finds what it does not."""

import numpy as np
import pytest

import nets
from cloister.base.rng import InsecureSeededRandom
from cloister.codegen.float64_check import check_module, in_float64
from cloister.codegen.measured_module import measure_module, random_sample
from cloister.errors import VerificationError
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from codegen.modules import Native, compiled

BUILD = "native-x86-64-v3"
NETS = ("branches", "chain", "depthwise", "residual", "sequence", "several", "text")


def checked(graph, run, samples=1):
    rng = InsecureSeededRandom(3)
    drawn = [random_sample(graph, rng) for _ in range(samples)]
    return check_module(graph, run, samples=drawn, rng=rng)


def runner(graph, change=lambda outputs: outputs):
    """The graph itself in float32, with its outputs changed."""

    def run(arrays):
        found = interpret(graph, dict(zip(graph.inputs, arrays, strict=True)))
        return change([found[name] for name in graph.outputs])

    return run


@pytest.mark.parametrize("name", NETS)
def test_a_module_is_within_a_bound_that_is_not_much_larger(name):
    graph = from_model(getattr(nets, name)(), name=name)
    native = Native(compiled(graph, builds=(BUILD,)), BUILD)
    found = checked(graph, lambda arrays: native.run(*arrays), samples=3)
    assert 0 < found.difference <= found.bound
    assert found.bound < 1e-3


@pytest.mark.parametrize("name", NETS)
def test_a_small_fault_is_found(name):
    graph = from_model(getattr(nets, name)(), name=name)
    checked(graph, runner(graph))

    def change(outputs):
        outputs[0] = outputs[0].copy()
        outputs[0].reshape(-1)[-1] += 1e-3
        return outputs

    with pytest.raises(VerificationError, match="from float64, more than"):
        checked(graph, runner(graph, change))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_found(value):
    graph = from_model(nets.chain(), name="chain")

    def change(outputs):
        outputs[0] = np.full_like(outputs[0], value)
        return outputs

    with pytest.raises(VerificationError):
        checked(graph, runner(graph, change))


def test_another_label_is_found():
    whole = from_model(nets.chain(), name="chain")
    graph = with_answers(whole, AnswerKind.LABEL)
    checked(graph, runner(graph))
    with pytest.raises(VerificationError):
        checked(graph, runner(graph, lambda outputs: [outputs[0] + 1]))


def test_the_graph_in_float64_has_no_float32():
    graph = in_float64(from_model(nets.residual(), name="residual"))
    kinds = {known.dtype.name for known in graph.types.values()}
    assert "float32" not in kinds
    assert "float64" in kinds


def test_a_module_is_measured_in_its_engine():
    graph = from_model(nets.text(), name="text")
    module = compiled(graph, builds=("native", "wasm"))
    for kind in ("native", "wasm"):
        found = measure_module(module, graph, kind=kind, rng=InsecureSeededRandom(2))
        assert found.engine == kind
        assert 0 < found.check.difference <= found.check.bound
        assert found.call_ms > 0
