"""A padded engine shows the sizes and times of its profile."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import nets
from cloister.errors import InputError
from cloister.graph.hidden import hide
from cloister.graph.onnx.read import from_model
from cloister.plan import policies
from cloister.plan.protection import hiding
from cloister.trusted.engines import engine_process, module_engine
from cloister.trusted.engines.module_engine import start_engine
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.trusted.session import Session
from codegen.modules import compiled
from trusted.engines import hand_written

KINDS = {"native": "native-x86-64", "wasm": "wasm"}


@pytest.mark.parametrize(
    ("nbytes", "total"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192), (2**31 + 1, 2**32)]
)
def test_sizes_are_rounded_up_to_a_power_of_two(nbytes, total):
    assert PaddingProfile().added_bytes(nbytes) == total - nbytes


def test_sizes_are_rounded_up_to_what_is_stated():
    profile = PaddingProfile(memory_bytes=5000)
    assert profile.added_bytes(5000) == 0
    assert profile.added_bytes(1) == 4999
    with pytest.raises(InputError, match="padding to 5000 B: the module takes 5001 B; give more"):
        profile.added_bytes(5001)
    for grid_ms in (0, -1, 60_001, float("nan")):
        with pytest.raises(InputError, match=r"a grid of .* ms; give 0.001 to 60000"):
            PaddingProfile(grid_ms=grid_ms)


def resident_bytes(engine):
    status = Path(f"/proc/{engine.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10


@pytest.mark.parametrize(("kind", "build"), KINDS.items())
def test_modules_of_any_size_take_the_same_memory(monkeypatch, kind, build):
    """What is sent is equal to the byte; what the process has, but for its own noise."""
    if kind == "wasm":
        pytest.importorskip("wasmtime")
    padding = PaddingProfile(memory_bytes=64 << 20, grid_ms=5.0)
    seen = {}
    for d, k in ((4, 3), (2000, 2000)):
        sent = []
        send = module_engine.ModuleEngine._send

        def counted(self, data, sent=sent, send=send):
            sent.append(len(data))
            send(self, data)

        monkeypatch.setattr(module_engine.ModuleEngine, "_send", counted)
        module, reference = hand_written.dense(d, k, builds=(build,))
        with start_engine(module, kind, padding=padding) as engine:
            load = sent[1:]  # what comes first are the settings
            x = np.ones((2, d), np.float32)
            np.testing.assert_allclose(engine.run([x])[0], reference(x), rtol=1e-3, atol=1e-3)
            seen[d] = sum(load), resident_bytes(engine)
        monkeypatch.undo()
    (sent_small, resident_small), (sent_large, resident_large) = seen.values()
    arena = 64  # bytes that are not sent
    assert abs(sent_small - sent_large) <= -(-4 * 2000 // arena) * arena
    assert abs(resident_small - resident_large) < 8 << 20


@pytest.mark.parametrize("grid_ns", [1_000, 2_003])
def test_answers_wait_for_the_grid(monkeypatch, grid_ns):
    """By a clock that goes on by 7 ns whenever it is read."""
    clock = itertools.count(10_000, 7)
    monkeypatch.setattr(engine_process.time, "perf_counter_ns", lambda: next(clock))
    for begun_ns in range(0, 5_000, 313):
        engine_process._wait_for_grid(begun_ns, grid_ns)
        # It was over at the reading before this one, and not at the one before that.
        late_ns = (next(clock) - 7 - begun_ns) % grid_ns
        assert late_ns <= 7


def test_without_a_grid_nothing_waits(monkeypatch):
    clock = itertools.count(10_000, 7)
    monkeypatch.setattr(engine_process.time, "perf_counter_ns", lambda: next(clock))
    engine_process._wait_for_grid(5_000, 1)
    assert next(clock) == 10_014  # it read the clock twice


def test_no_answer_comes_before_the_grid():
    module, _ = hand_written.dense()
    with start_engine(module, "native", padding=PaddingProfile(grid_ms=20.0)) as engine:
        engine.run([np.zeros((1, 4), np.float32)])
        # The module takes microseconds.
        assert engine.measured.compute_ms + engine.measured.transition_ms >= 20.0
        assert engine.measured.load_ms >= 20.0


def test_what_cannot_be_padded_is_refused():
    module, _ = hand_written.dense_onnx()
    with pytest.raises(InputError, match="the engine onnxruntime cannot be padded"):
        start_engine(module, "onnxruntime", padding=PaddingProfile())
    module, _ = hand_written.dense()
    with pytest.raises(InputError, match="padding to 100 B: the module takes"):
        start_engine(module, "native", padding=PaddingProfile(memory_bytes=100))


def test_a_session_pads_its_engines():
    pytest.importorskip("ziglang")
    model = nets.chain()
    split = hide(from_model(model, name="chain"), last=2)
    module = compiled(split.hidden, builds=("native",))
    plan = policies.make(hiding("enclave"), split.named(module.manifest.digest))
    samples, modules = nets.samples(model, 2), {split.node: module}
    with Session(plan, modules=modules) as session:
        plain = session.run(samples)
    with Session(plan, modules=modules, padding=PaddingProfile(grid_ms=30.0)) as session:
        padded = session.run(samples)
    for name, value in plain.outputs.items():
        np.testing.assert_array_equal(padded.outputs[name], value)
    assert padded.report.module_ms >= 30.0
    tight = PaddingProfile(memory_bytes=100)
    with pytest.raises(InputError, match="padding to 100 B: the module takes"):
        Session(plan, modules=modules, padding=tight)
