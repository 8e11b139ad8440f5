import warnings

import numpy as np
import pytest

import nets
import unequal
from cloister.errors import CloisterWarning, PrecisionWarning, UnsupportedError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import accuracy, policies
from cloister.plan.accuracy import MAX_ERROR, SAMPLES
from cloister.plan.quantised import Precision
from cloister.ring.ring_map import RingMap


def graph_of(model):
    return normalise.prepare(read.from_model(model, name="net"))


@pytest.mark.parametrize("net", nets.ALL)
def test_twelve_bits_give_no_warning(net):
    model = nets.ALL[net]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policies.make("slalom", graph_of(model), calibration=nets.samples(model, 6))


def test_few_bits_are_told_with_node_error_bound_and_remedy():
    model = nets.residual()
    few = Precision(weight_bits=5, activation_bits=5)
    with pytest.warns(PrecisionWarning, match=r"node '\w+': .* 0\.\d+ away") as told:
        policies.make("slalom", graph_of(model), calibration=nets.samples(model, 6), precision=few)
    (one,) = told
    for text in (f"bound {MAX_ERROR}", "cloister compare", "more bits"):
        assert text in str(one.message)
    assert issubclass(PrecisionWarning, CloisterWarning)


def test_an_outlier_in_the_samples_is_told():
    model = nets.chain()
    samples = nets.samples(model, 6)
    samples["image"][-1, 0, 0, 0] = 1e6
    with pytest.warns(PrecisionWarning, match="Conv_0"):
        policies.make("slalom", graph_of(model), calibration=samples)


@pytest.mark.parametrize("policy", ["enclave", "open"])
def test_plans_in_float32_have_nothing_to_measure(policy):
    model = nets.chain()
    policies.make(policy, graph_of(model), calibration=nets.samples(model, 2))


def test_only_the_first_samples_are_computed(monkeypatch):
    counts = []
    model = unequal.table()

    class Counting(RingMap):
        def apply(self, x, **options):
            counts.append(len(x))
            return super().apply(x, **options)

    monkeypatch.setattr(accuracy, "RingMap", Counting)
    policies.make("slalom", graph_of(model), calibration=unequal.samples(model, 50))
    assert counts == [SAMPLES] * 2


def test_a_layer_without_a_result_is_no_error():
    net = nets.Net()
    zero = net.constant(np.zeros((3, 4), np.float32))
    model = net.model(net.op("Gemm", net.input("x", 4), zero, transB=1))
    policies.make("slalom", graph_of(model), calibration=nets.samples(model, 3))


def test_what_float32_cannot_hold_is_left_out():
    net = nets.Net()
    weights = net.constant(np.array([[3e38, 3e38], [1, 2]], np.float32))
    model = net.model(net.op("Gemm", net.input("x", 2), weights, transB=1))
    samples = {"x": np.full((3, 2), 2, np.float32)}
    policies.make("slalom", graph_of(model), calibration=samples)


def test_a_shape_that_onnx_runtime_does_not_compute(monkeypatch):
    model = nets.chain()
    alone = accuracy._alone
    monkeypatch.setattr(accuracy, "_alone", lambda *given: alone(*given)[:, :1])
    with pytest.raises(UnsupportedError, match="node 'Conv_0': ONNX Runtime computes shape"):
        policies.make("slalom", graph_of(model), calibration=nets.samples(model, 3))
