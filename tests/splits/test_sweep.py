"""Every split of a model, with an engine of which all times are known."""

from dataclasses import replace

import numpy as np
import pytest

import nets
from cloister.errors import InputError, UnsupportedError
from cloister.graph.hidden import layers
from cloister.graph.interpreter import interpret
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.splits.split_cost import (
    HIDDEN_COLUMNS,
    TIME_COLUMNS,
    SplitSweep,
    hidden_rows,
    time_rows,
)
from cloister.splits.sweep import sweep, work
from splits import fake_bench
from splits.fake_bench import FakeEngines

REPEATS, STARTS = 4, 3


@pytest.fixture
def graph():
    return prepare(from_model(nets.chain(), name="chain"))


@pytest.fixture
def inputs(graph):
    return {"image": np.random.default_rng(0).random((3, 3, 13, 10), np.float32)}


@pytest.fixture
def engines():
    return FakeEngines()


def run(graph, inputs, engines, **more):
    found, missing = sweep(graph, inputs, engines.bench(), repeats=REPEATS, starts=STARTS, **more)
    assert missing is None
    return found


def test_every_split_is_measured(graph, inputs, engines):
    found = run(graph, inputs, engines)
    deep = len(layers(graph))
    assert deep == 3
    assert [one.layers for one in found] == list(range(deep + 1))
    assert len(engines.compiled) == deep
    assert len(engines.started) == deep * STARTS
    assert all(engine.closed for engine in engines.started)


def test_what_is_outside_and_the_engine_make_the_model(graph, inputs, engines):
    run(graph, inputs, engines)
    (wanted,) = interpret(graph, inputs).values()
    for engine in engines.started:
        for i, (made,) in enumerate(engine.outputs):
            # The cold inference takes the first sample, the warm ones take them by turns.
            sample = max(i - 1, 0) % 3
            np.testing.assert_allclose(made, wanted[sample : sample + 1], rtol=1e-4, atol=1e-5)


def test_nothing_hidden_has_no_engine(graph, inputs, engines):
    nothing = run(graph, inputs, engines)[0]
    assert nothing.hidden is nothing.cold is nothing.memory is nothing.modelled is None
    assert nothing.warm.open == nothing.warm.total
    assert nothing.warm.open.median > 0
    assert nothing.warm.transition.median == nothing.warm.compute.median == 0


def test_times_are_apart(graph, inputs, engines):
    for one in run(graph, inputs, engines)[1:]:
        warm, cold = one.warm, one.cold
        assert warm.compute.median == fake_bench.PLAIN_MS
        assert warm.overhead.median == (fake_bench.SLOWER - 1) * fake_bench.PLAIN_MS
        assert warm.transition.median == fake_bench.TRANSITION_MS
        engine_ms = fake_bench.TRANSITION_MS + fake_bench.SLOWER * fake_bench.PLAIN_MS
        assert warm.total.median - warm.open.median == pytest.approx(engine_ms, abs=0.05)
        assert cold.setup.median == fake_bench.SETUP_MS
        assert cold.load.median == fake_bench.LOAD_MS
        assert cold.total.low >= fake_bench.SETUP_MS + fake_bench.LOAD_MS


def test_what_is_hidden_grows_up_to_the_whole_model(graph, inputs, engines):
    found = run(graph, inputs, engines)[1:]
    whole = work(graph)
    for column in ("parameters", "flops"):
        counts = [getattr(one.hidden, column) for one in found]
        assert counts == sorted(set(counts))
        assert counts[-1] == whole.total(column)
    assert [one.hidden.first for one in found] == [one.name for one in layers(graph)][::-1]


def test_memory_is_the_modules_and_the_process(graph, inputs, engines):
    (*_, whole) = run(graph, inputs, engines)
    values = 4 * (3 * 13 * 10 + 5)
    assert values <= whole.memory.values <= values + 2 * 63
    assert whole.memory.module == (
        fake_bench.WEIGHTS_BYTES + fake_bench.ARENA_BYTES + whole.memory.values
    )
    assert whole.memory.resident > 1 << 20
    assert set(whole.modelled) == {"sgx1", "sgx2"}
    assert whole.modelled["sgx1"].memory_ms == pytest.approx(0.055 * fake_bench.PLAIN_MS)


def test_the_thiefs_gain_or_a_gap(graph, inputs, engines):
    found = run(graph, inputs, engines, gain={0: 4.0, 2: 1.5}.get)
    assert [one.gain for one in found] == [4.0, None, 1.5, None]


@pytest.mark.parametrize("compiled", [0, 2])
def test_what_cannot_be_compiled_ends_the_sweep(graph, inputs, engines, compiled):
    bench = engines.bench()

    def some(hidden):
        if len(engines.compiled) == compiled:
            raise UnsupportedError("node 'x' (Odd): cannot be compiled")
        return bench.compile(hidden)

    options = {"repeats": REPEATS, "starts": STARTS}
    if not compiled:
        with pytest.raises(UnsupportedError, match="Odd"):
            sweep(graph, inputs, replace(bench, compile=some), **options)
        return
    found, missing = sweep(graph, inputs, replace(bench, compile=some), **options)
    assert [one.layers for one in found] == [0, 1, 2]
    assert missing == "3 and more layers cannot be hidden: node 'x' (Odd): cannot be compiled"
    assert missing in made(graph, inputs, engines, splits=found, missing=missing).notes()


def test_progress_ends(graph, inputs, engines):
    seen = []
    run(graph, inputs, engines, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_model_without_weights(engines):
    net = nets.Net()
    x = net.input("x", 4)
    graph = prepare(from_model(net.model(net.op("Relu", x)), name="relu"))
    with pytest.raises(InputError, match="no layer with weights"):
        run(graph, {"x": np.ones((1, 4), np.float32)}, engines)


def made(graph, inputs, engines, **more):
    costs = work(graph)
    known = {
        "model": "chain", "parameters": costs.total("parameters"), "flops": costs.total("flops"),
        "engine": "fake", "repeats": REPEATS, "starts": STARTS, "inputs": "random",
        "weights": "random", "splits": run(graph, inputs, engines),
    }  # fmt: skip
    return SplitSweep(**{**known, **more})


def test_the_table_and_the_document(graph, inputs, engines):
    found = made(graph, inputs, engines)
    assert {len(row) for row in hidden_rows(found)} == {len(HIDDEN_COLUMNS)}
    assert {len(row) for row in time_rows(found)} == {len(TIME_COLUMNS)}
    assert time_rows(found)[1][2] == fake_bench.PLAIN_MS
    document = found.to_dict()
    assert [one["layers"] for one in document["splits"]] == [0, 1, 2, 3]
    assert document["splits"][1]["modelled"]["sgx1"]["transition_ms"] > 0
    assert document["splits"][1]["cold"]["setup"]["median"] == fake_bench.SETUP_MS
    assert {row["tee"] for row in document["constants"]} == {"all", "sgx1", "sgx2"}


def test_notes_say_what_is_missing_or_modelled(graph, inputs, engines):
    found = made(graph, inputs, engines)
    notes = "\n".join(found.notes())
    assert "constants, not measured" in notes
    assert "weights: random" in notes
    assert "cloister audit model" in notes
    assert "accuracy" not in notes
    audited = run(graph, inputs, engines, gain=lambda _: 1.0)
    notes = "\n".join(made(graph, inputs, engines, splits=audited, accuracy=0.98765).notes())
    assert "cloister audit model" not in notes
    assert "test accuracy: 0.9877" in notes
