"""Engines run compiled modules: the same answers for every kind, and clear ends."""

import dataclasses
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from cloister.errors import EngineError, InputError, ShapeError
from cloister.trusted.engines import module_engine, processor
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


def test_several_inputs_and_outputs_lie_where_the_manifest_says():
    body = """
    RUN {
      CHECK_LENGTHS
      const int64_t *a = inputs;
      const float *b = (const float *)((const char *)inputs + 64);
      const int32_t *c = (const int32_t *)((const char *)inputs + 192);
      float *y = outputs;
      int64_t *z = (int64_t *)((char *)outputs + 64);
      for (int i = 0; i < 6; i++) y[i] = b[i] * b[31 - i];
      z[0] = a[0] * a[1] + c[0];
      return 0;
    }
    """
    module = hand_written.made(
        body,
        inputs=(("a", "int64", (2,)), ("b", "float32", (4, 8)), ("c", "int32", ())),
        outputs=(("y", "float32", (2, 3)), ("z", "int64", (1,))),
    )
    rng = np.random.default_rng(3)
    a, c = rng.integers(-99, 99, (7, 2)), rng.integers(-99, 99, 7).astype(np.int32)
    b = rng.standard_normal((7, 4, 8)).astype(np.float32)
    with start_engine(module, "native") as engine:
        y, z = engine.run([a, b[:, :, :], c])
        # Arrays of any layout.
        turned = np.asfortranarray(b)
        np.testing.assert_array_equal(engine.run([a, turned, c])[0], y)
    flat = b.reshape(7, 32)
    np.testing.assert_array_equal(y.reshape(7, 6), flat[:, :6] * flat[:, :25:-1])
    np.testing.assert_array_equal(z[:, 0], a[:, 0] * a[:, 1] + c)
    assert (y.dtype, z.dtype) == (np.float32, np.int64)


def test_what_is_returned_stays_as_it_is(kind):
    module, _ = dense_for(kind)
    with start_engine(module, kind) as engine:
        (first,) = engine.run([samples(3)])
        kept = first.copy()
        engine.run([samples(3, seed=9)])
    np.testing.assert_array_equal(first, kept)


def test_calls_of_several_threads_do_not_mix(kind):
    module, reference = dense_for(kind)
    failures = []

    def call(seed):
        for _ in range(30):
            x = samples(3, seed=seed)
            if not np.allclose(engine.run([x])[0], reference(x), atol=1e-5):
                failures.append(seed)

    with start_engine(module, kind) as engine:
        threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert failures == []


# ---- WebAssembly


def test_fuel_is_counted_for_each_sample():
    pytest.importorskip("wasmtime")
    loop = """
    RUN {
      CHECK_LENGTHS
      volatile float sum = 0;
      for (int i = 0; i < (int)*(const float *)inputs; i++) sum += 1.0f;
      *(float *)outputs = sum;
      return 0;
    }
    """
    module = hand_written.made(loop, builds=("wasm",))
    x = np.zeros((4, 4), np.float32)
    x[:, 0] = 10, 20, 30, 10
    with start_engine(module, "wasm", fuel=True) as engine:
        np.testing.assert_array_equal(engine.run([x])[0][:, 0], x[:, 0])
        first, second, third, fourth = engine.fuel
        assert 0 < first < second < third
        assert fourth == first
        engine.run([x[:1]])
        assert engine.fuel == (first,)
    with start_engine(module, "wasm") as engine:
        engine.run([x])
        assert engine.fuel == ()


def test_a_wasm_module_that_imports_is_refused():
    pytest.importorskip("wasmtime")
    body = """
    __attribute__((import_module("env"), import_name("tell"))) void tell(int);
    RUN { CHECK_LENGTHS tell(1); return 0; }
    """
    module = hand_written.made(body, builds=("wasm",))
    with pytest.raises(InputError, match=r"imports env\.tell; modules import nothing"):
        start_engine(module, "wasm")


def test_a_wasm_module_cannot_take_more_memory():
    pytest.importorskip("wasmtime")
    grow = "(int)__builtin_wasm_memory_grow(0, 1)"
    body = f"RUN {{ CHECK_LENGTHS *(float *)outputs = {grow}; return 0; }}"
    with start_engine(hand_written.made(body, builds=("wasm",)), "wasm") as engine:
        assert engine.run([samples(1)])[0][0, 0] == -1


@pytest.mark.parametrize(
    "body", ["__builtin_trap();", "*(volatile float *)0xFFFFFFF0u = 1;", "while (1) ;"]
)
def test_a_wasm_module_that_traps_returns_nothing(body):
    pytest.importorskip("wasmtime")
    body = f"RUN {{ CHECK_LENGTHS *(float *)outputs = 7; {body} return 0; }}"
    module = hand_written.made(body, builds=("wasm",))
    with start_engine(module, "wasm", timeout_s=2.0) as engine:
        with pytest.raises(EngineError, match=r"ended with status 4294967295|did not answer"):
            engine.run([samples(1)])
        with pytest.raises(EngineError, match="cannot be used any more"):
            engine.run([samples(1)])


def test_without_wasmtime_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module_engine.importlib.util, "find_spec", lambda _: None)
    module, _ = hand_written.dense(builds=("wasm",))
    with pytest.raises(InputError, match="pip install 'cloister\\[compile\\]'"):
        start_engine(module, "wasm")


# ---- failures


FAILURES = {
    "status 7": ("return 7;", "the module ended with status 7"),
    "negative status": ("return -1;", "the module ended with status 4294967295"),
    "null": ("*(volatile float *)0 = 1;", f"was killed by signal {int(signal.SIGSEGV)}"),
    "illegal instruction": ("__builtin_trap();", "was killed by signal"),
    "read before the weights": (
        # They are of 64 bytes, which lie at the end of a page.
        "*(float *)outputs = ((const volatile char *)weights)[-4096];",
        f"was killed by signal {int(signal.SIGSEGV)}",
    ),
    "read beyond the inputs": (
        "*(float *)outputs = ((const volatile char *)inputs)[INPUTS];",
        f"was killed by signal {int(signal.SIGSEGV)}",
    ),
    "write beyond the outputs": (
        "((volatile char *)outputs)[OUTPUTS] = 1;",
        f"was killed by signal {int(signal.SIGSEGV)}",
    ),
    "write to the weights": (
        "*(volatile char *)weights = 1;",
        f"was killed by signal {int(signal.SIGSEGV)}",
    ),
    "spin": ("for (volatile unsigned i = 1; i; i |= 1) ;", "did not answer in time"),
}


@pytest.mark.parametrize(("what", "text"), FAILURES.values(), ids=FAILURES)
def test_a_module_that_fails_returns_nothing(what, text):
    """It fails at the second sample, having written outputs: neither's are returned."""
    body = f"""
    RUN {{
      CHECK_LENGTHS
      float *y = outputs;
      y[0] = y[1] = y[2] = 7;
      if (*(const float *)inputs > 0) {{ {what} }}
      return 0;
    }}
    """
    module = hand_written.made(body, weights=bytes(range(64)))
    x = np.zeros((2, 4), np.float32)
    x[1] = 1
    with start_engine(module, "native", timeout_s=1.0) as engine:
        assert engine.run([x[:1]])[0][0].tolist() == [7, 7, 7]
        with pytest.raises(EngineError, match=text):
            engine.run([x])
        assert not engine._memory.any()
        assert not Path(f"/proc/{engine.pid}").exists()
        with pytest.raises(EngineError, match="cannot be used any more"):
            engine.run([x[:1]])


def test_a_process_that_is_killed_is_noticed(kind):
    module, _ = dense_for(kind)
    with start_engine(module, kind) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="was killed by signal 9"):
            engine.run([samples(1)])
        with pytest.raises(EngineError, match="cannot be used any more"):
            engine.run([samples(1)])


def test_a_closed_engine_is_over(kind):
    module, _ = dense_for(kind)
    engine = start_engine(module, kind)
    engine.run([samples(2)])
    engine.close()
    engine.close()
    assert not engine._memory.any()
    assert not Path(f"/proc/{engine.pid}").exists()
    with pytest.raises(EngineError, match="cannot be used any more: it was closed"):
        engine.run([samples(1)])


def test_inputs_that_are_not_the_modules_are_refused(kind):
    module, reference = dense_for(kind)
    x = samples(2)
    wrong = (
        [], [x, x], [x[0]], [x[:, :3]], [x[:, :, None]], [x.astype(np.float64)],
        [x.astype(np.int32)], [np.zeros((), np.float32)], [x.astype(">f4")],
    )  # fmt: skip
    with start_engine(module, kind) as engine:
        for inputs in wrong:
            with pytest.raises(ShapeError, match=r"takes 1 inputs|input 'x' is"):
                engine.run(inputs)
        np.testing.assert_allclose(engine.run([x])[0], reference(x), atol=1e-6)


SIZES = {"ABI": 0, "WEIGHTS": 1, "INPUTS": 2, "OUTPUTS": 3, "ARENA": 4}


@pytest.mark.parametrize(("name", "which"), SIZES.items())
@pytest.mark.parametrize("build", ["native-x86-64", "wasm"])
def test_code_of_other_sizes_than_its_manifest_is_refused(name, which, build):
    """A build of another module, of another version, or with a larger output."""
    body = "RUN { CHECK_LENGTHS return 0; }"
    if name == "ABI":
        claimed, defines = {}, "#define ABI 2\n"
    else:
        claimed, defines = {name: 4096}, ""
    module = hand_written.made(
        body.replace("CHECK_LENGTHS", ""), weights=b"w" * 64, builds=(build,), claimed=claimed,
        defines=defines,
    )  # fmt: skip
    kind = "wasm" if build == "wasm" else "native"
    with pytest.raises(InputError, match=f"the module's size {which} is not its manifest's"):
        start_engine(module, kind)


def test_what_cannot_be_run_is_refused_before_a_process_starts(monkeypatch):
    module, _ = hand_written.dense(builds=("native-x86-64-v4",))
    monkeypatch.setattr(module_engine, "start", None)
    with pytest.raises(InputError, match="engine 'sgx' is not one of native, wasm, onnxruntime"):
        start_engine(module, "sgx")
    for kind, build in (("wasm", "wasm"), ("onnxruntime", "onnx")):
        with pytest.raises(InputError, match=f"has no build {build}, only native-x86-64-v4"):
            start_engine(module, kind)
    with pytest.raises(InputError, match="has no build native-x86-64, only native-x86-64-v4"):
        start_engine(module, "native", build="native-x86-64")
    with pytest.raises(InputError, match="only the engine wasm counts fuel"):
        start_engine(module, "native", build="native-x86-64-v4", fuel=True)
    monkeypatch.setattr(processor, "_flags", lambda: set(processor._V3))
    assert processor.runnable_builds() == ("native-x86-64-v3", "native-x86-64")
    with pytest.raises(InputError, match="has no native build for this processor"):
        start_engine(module, "native")
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    for kind in KINDS:
        with pytest.raises(InputError, match="engines run on x86-64 only, and this is aarch64"):
            start_engine(module, kind)


def test_a_process_that_does_not_start_says_why(monkeypatch):
    """One line, and nothing that could change a terminal."""
    module, _ = hand_written.dense()
    code = "import sys; sys.stderr.write('first\\n' + 'x' * 999 + '\\x1b[2J'); sys.exit(3)"
    real = module_engine.python
    monkeypatch.setattr(module_engine, "python", lambda *_: real("-c", code))
    with pytest.raises(EngineError) as caught:
        start_engine(module, "native")
    text = str(caught.value)
    assert "its process ended with exit code 3: xxx" in text
    assert "first" not in text
    assert len(text) < 300
    monkeypatch.setattr(module_engine, "python", lambda *_: ["/nonexistent/python"])
    with pytest.raises(EngineError, match="cannot be started: No such file"):
        start_engine(module, "native")


@pytest.mark.parametrize("read", ["0", "1 << 20"])
def test_a_process_that_hangs_while_it_starts_is_ended(monkeypatch, read):
    """It reads nothing, or settings only."""
    module, _ = hand_written.dense(300, 300)
    code = f"import socket, sys, time; s = socket.socket(fileno=int(sys.argv[2])); s.recv({read}); "
    code += "time.sleep(600)"
    real = module_engine.python
    monkeypatch.setattr(module_engine, "python", lambda *given: real("-c", code, *given[2:]))
    monkeypatch.setattr(module_engine, "DEFAULT_START_TIMEOUT_S", 0.5)
    with pytest.raises(EngineError, match="did not answer in time, and was ended"):
        start_engine(module, "native")


def test_the_manifest_decides_and_not_a_copy_of_it():
    module, _ = hand_written.dense()
    other = dataclasses.replace(module.manifest, outputs=module.manifest.outputs * 2)
    module = dataclasses.replace(module, manifest=other)
    with pytest.raises(InputError, match="the module's size 3 is not its manifest's"):
        start_engine(module, "native")
