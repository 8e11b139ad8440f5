"""Engines run compiled modules: the same answers for every kind, and clear ends."""

import numpy as np
import pytest

from cloister.trusted.engines.module_engine import start_engine
from cloister.trusted.engines.processor import runnable_builds
from trusted.engines import hand_written

NATIVE = ("native-x86-64-v4", "native-x86-64-v3", "native-x86-64")
KINDS = ("native", "wasm", "onnxruntime")


def samples(count, d=4, seed=2):
    return np.random.default_rng(seed).standard_normal((count, d)).astype(np.float32)


def dense_for(kind, **more):
    if kind == "onnxruntime":
        return hand_written.dense_onnx(**more)
    build = {"native": "native-x86-64", "wasm": "wasm"}[kind]
    return hand_written.dense(builds=(build,), **more)


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param == "wasm":
        pytest.importorskip("wasmtime")
    return request.param


def test_a_batch_is_computed_row_by_row(kind):
    module, reference = dense_for(kind)
    with start_engine(module, kind) as engine:
        for count in (1, 5, 300):
            x = samples(count)
            (y,) = engine.run([x])
            np.testing.assert_allclose(y, reference(x), rtol=1e-6, atol=1e-6)
        assert engine.run([samples(0)])[0].shape == (0, 3)


def test_every_build_gives_the_same_bits():
    pytest.importorskip("wasmtime")
    module, reference = hand_written.dense(17, 5, builds=(*NATIVE, "wasm"))
    x = samples(9, 17)
    for kind, build in [*(("native", one) for one in runnable_builds()), ("wasm", None)]:
        with start_engine(module, kind, build=build) as engine:
            assert engine.build == (build or "wasm")
            np.testing.assert_array_equal(engine.run([x])[0], reference(x))


def test_the_fastest_build_for_this_processor_is_taken():
    module, _ = hand_written.dense(builds=NATIVE)
    with start_engine(module, "native") as engine:
        assert engine.build == runnable_builds()[0]


def test_times_are_measured_part_by_part(kind):
    module, _ = dense_for(kind)
    with start_engine(module, kind) as engine:
        before = engine.measured
        assert min(before.start_ms, before.load_ms) > 0 == before.compute_ms
        engine.run([samples(3)])
        after = engine.measured
        assert min(after.compute_ms, after.transition_ms) > 0
        assert (after.start_ms, after.load_ms) == (before.start_ms, before.load_ms)
