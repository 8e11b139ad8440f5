"""Real engines: a whole sweep of a small model, compiled."""

import os
from contextlib import closing

import numpy as np
import pytest

import nets
from cloister.audit.model.theft_report import ModelTheftReport
from cloister.errors import InputError
from cloister.graph.hidden import hide, layers
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.splits import measure_splits as home
from cloister.splits.compiled_bench import BUILDS, engine_bench
from cloister.splits.engine_bench import resident_bytes
from cloister.splits.measure_splits import measure_splits
from cloister.splits.net_builder import NetBuilder
from cloister.splits.preset_model import SweptModel

pytest.importorskip("ziglang")


@pytest.fixture
def graph():
    return prepare(from_model(nets.chain(), name="chain"))


@pytest.fixture
def model(graph):
    x = np.random.default_rng(0).random((2, 3, 13, 10), np.float32)
    return SweptModel(graph, {"image": x}, "random", "random")


@pytest.mark.parametrize("kind", list(BUILDS))
def test_an_engine_and_its_plain_run_compute_the_hidden_part(graph, model, kind):
    if kind == "wasm":
        pytest.importorskip("wasmtime")
    split = hide(graph, last=len(layers(graph)))
    bench = engine_bench(kind)
    module = bench.compile(split.hidden)
    (wanted,) = interpret(graph, model.inputs).values()
    engine = bench.start(module)
    try:
        (found,) = engine.run([model.inputs["image"]])
        assert resident_bytes(engine.pid) > 1 << 20
    finally:
        engine.close()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert bench.plain(split.hidden, module)([model.inputs["image"]]) > 0


def test_a_whole_sweep(model):
    found = measure_splits(model, engine="native", repeats=2, starts=1)
    assert [one.layers for one in found.splits] == [0, 1, 2, 3]
    for one in found.splits[1:]:
        assert one.warm.compute.median > 0
        assert one.cold.setup.median > 0
        assert one.memory.weights >= 4 * one.hidden.parameters
    assert found.parameters == found.splits[-1].hidden.parameters


def test_a_process_that_has_ended():
    assert resident_bytes(os.getpid()) > 1 << 20
    assert resident_bytes(2**22 + 1) is None


@pytest.fixture
def report(model, monkeypatch):
    """A report whose gains are known, as `load` gives it."""

    class Report:
        model = "chain"
        splits = tuple(type("Split", (), {"hidden_layers": n})() for n in (1, 3))

        def gain(self, layers):
            return 10.0 + layers

    Report.model_sha256 = home.digest(model.graph)
    monkeypatch.setattr(ModelTheftReport, "load", lambda path: Report())
    return Report


def test_gains_of_a_report(model, report, tmp_path):
    found = measure_splits(model, engine="native", repeats=2, starts=1, theft=tmp_path)
    assert [one.gain for one in found.splits] == [None, 11.0, None, 13.0]


def test_a_report_of_another_model(model, report, tmp_path):
    report.model_sha256 = "0" * 64
    with pytest.raises(InputError, match=r"--theft .*: is the report of another model, 'chain'"):
        measure_splits(model, engine="native", theft=tmp_path)


def test_a_file_that_is_no_report(model, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="not the report of an audit"):
        measure_splits(model, engine="native", theft=path)


def test_an_embedding_and_convolutions_in_one_module():
    net = NetBuilder("words", "words", (12,), np.int32)
    x = net.max_pool(net.separable(net.embedding("words", 30, 8), 6), 2)
    graph = prepare(net.network(net.dense(net.flatten(x), 36, 3), logits="").graph)
    words = np.random.default_rng(0).integers(0, 30, (2, 12)).astype(np.int32)
    bench = engine_bench("native")
    split = hide(graph, last=len(layers(graph)))
    with closing(bench.start(bench.compile(split.hidden))) as engine:
        (found,) = engine.run([words])
    (wanted,) = interpret(graph, {"words": words}).values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
