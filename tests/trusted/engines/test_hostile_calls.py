"""Lengths, messages and builds that are not what they should be: nothing hidden is returned.

Two thousand hostile calls: 1,000 at the C interface, 600 at the engine, 400 builds. Then garbled
loads of the process, and answers of a process that lies.
"""

import contextlib
import ctypes
import os
import socket
import struct
from pathlib import Path

import numpy as np
import pytest

from cloister.bundle.manifest import ModuleTensor
from cloister.errors import EngineError, InputError, ShapeError
from cloister.trusted.engines import module_engine
from cloister.trusted.engines.engine_messages import (
    ANSWER_BYTES,
    LENGTH,
    ROWS,
    EngineAnswer,
    EngineSettings,
    Status,
    receive,
)
from cloister.trusted.engines.module_engine import start_engine
from cloister.trusted.engines.native_image import NativeImage
from trusted.engines import hand_written
from trusted.engines.planted_weights import found, planted

D, K = 15, 16
FILL = 0xA5


@pytest.fixture(scope="module")
def hostile_target():
    """A dense layer with weights that can be recognised."""
    secret = planted(4 * (D * K + K))
    return hand_written.made(
        hand_written.DENSE, inputs=(("x", "float32", (D,)),), outputs=(("y", "float32", (K,)),),
        weights=secret, builds=("native-x86-64",), defines=f"#define D {D}\n#define K {K}\n",
    )  # fmt: skip


def test_calls_with_wrong_lengths_write_nothing(hostile_target):
    """Straight at the C interface: 1 to 4 is returned, and no buffer is touched."""
    name = "cloister_module_run"
    image = NativeImage(memoryview(hostile_target.builds["native-x86-64"]), [name])
    words = [ctypes.c_void_p, ctypes.c_uint64] * 4
    run = ctypes.CFUNCTYPE(ctypes.c_int32, *words)(image.functions[name])
    manifest = hostile_target.manifest
    right = [
        manifest.weights_bytes, manifest.input_bytes, manifest.output_bytes, manifest.arena_bytes
    ]  # fmt: skip
    buffers = [ctypes.create_string_buffer(bytes([FILL]) * nbytes, nbytes) for nbytes in right]
    rng = np.random.default_rng(5)
    odd = [0, 1, 2**31 - 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 64]
    seen = set()
    for _ in range(1000):
        lengths = list(right)
        for which in rng.choice(4, rng.integers(1, 5), replace=False):
            near = max(0, right[which] + int(rng.integers(-80, 81)))
            far = odd[rng.integers(len(odd))]
            lengths[which] = near if rng.integers(2) else far
        # The sizes of other buffers, in other places, too.
        if rng.integers(4) == 0:
            lengths = [right[i] for i in rng.permutation(4)]
        if lengths == right:
            continue
        pairs = zip(buffers, lengths, strict=True)
        status = run(*(word for buffer, n in pairs for word in (ctypes.addressof(buffer), n)))
        assert status in (1, 2, 3, 4)
        seen.add(status)
    assert seen == {1, 2, 3, 4}
    for buffer in buffers:
        assert set(buffer.raw) == {FILL}


def test_calls_with_wrong_inputs_return_nothing(hostile_target):
    rng = np.random.default_rng(6)
    types = ["f4", "f8", "f2", "i4", "i8", "u1", "c8", "?", ">f4", "S4", "O"]
    x = rng.standard_normal((3, D)).astype(np.float32)
    with start_engine(hostile_target, "native") as engine:
        (before,) = engine.run([x])
        for _ in range(600):
            shape = tuple(rng.integers(0, 40, rng.integers(0, 5)))
            dtype = np.dtype(types[rng.integers(len(types))])
            if dtype == np.float32 and shape[1:] == (D,):
                continue
            with pytest.raises(ShapeError):
                engine.run([np.zeros(shape, dtype)] * int(rng.choice([1, 1, 1, 0, 2])))
        np.testing.assert_array_equal(engine.run([x])[0], before)


def test_damaged_builds_are_refused_or_load_as_they_are(hostile_target):
    """Nothing of them runs: the loader reads a library that anybody may have made."""
    code = hostile_target.builds["native-x86-64"]
    names = ("cloister_module_size", "cloister_module_run")
    rng, refused = np.random.default_rng(7), 0
    for i in range(400):
        damaged = bytearray(code)
        if i % 3 == 0:
            damaged = damaged[: rng.integers(len(code))]
        else:
            for _ in range(rng.integers(1, 9)):
                # Headers and tables lie at the beginning.
                damaged[rng.integers(0x400 if i % 3 == 1 else len(code))] = rng.integers(256)
        try:
            NativeImage(memoryview(damaged), names)
        except (InputError, MemoryError):
            refused += 1
    assert 130 < refused < 400


WAT = """
(module (memory (export "memory") 2) BASE
  (func (export "cloister_module_size") (param i32) (result i64) (i64.const 64))
  (func (export "cloister_module_run") (param i32 i64 i32 i64 i32 i64 i32 i64) (result i32)
    (i32.const 0))
  (func $first (i32.store (i32.const 0) (i32.const 1))) START)
"""
PLACE = "__heap_base is no place in its memory"


@pytest.mark.parametrize(("kind", "base", "start", "message"), [
    ("i32", 1024, "(start $first)", "has a function that runs at its start"),
    ("i32", -1, "", PLACE),
    ("i32", -4096, "", PLACE),
    ("i32", -(2**31), "", PLACE),
    ("i64", 2**32, "", PLACE),
    ("f32", 1024.5, "", PLACE),
])  # fmt: skip
def test_hostile_webassembly_is_refused_before_it_runs(kind, base, start, message):
    """Its start function would run before the second lock, and a place before its memory is
    wasmtime's."""
    wasmtime = pytest.importorskip("wasmtime")
    exported = f'(global (export "__heap_base") {kind} ({kind}.const {base}))'
    code = wasmtime.wat2wasm(WAT.replace("BASE", exported).replace("START", start))
    tensors = (ModuleTensor("x", "float32", (4,)),), (ModuleTensor("y", "float32", (3,)),)
    module = hand_written.of_parts(*tensors, bytes(16), 64, {"wasm": bytes(code)})
    with pytest.raises(InputError, match=message):
        start_engine(module, "wasm")


# ---- the process, spoken to by somebody who knows its protocol


@contextlib.contextmanager
def spoken_to(module, settings=None):
    """The socket of a process that has got settings, and waits for the code."""
    kept = {}

    class Raw(module_engine.ModuleEngine):
        def _load(self, code, weights):
            kept["engine"] = self

    build = "native-x86-64"
    given = module_engine._settings(module, "native", build, 1, False)
    engine = Raw(module, "native", build, settings or given, timeout_s=5.0)
    with engine:
        engine._channel.settimeout(20.0)
        yield engine


def answers(channel):
    """All that a process sends until it ends."""
    came = bytearray()
    with contextlib.suppress(OSError):
        while data := channel.recv(1 << 16):
            came += data
    return bytes(came)


def test_garbled_loads_return_nothing(hostile_target):
    """Truncated, exchanged and surplus bytes of code and weights, in chunks of any size."""
    code, secret = hostile_target.builds["native-x86-64"], hostile_target.weights
    rng = np.random.default_rng(8)
    for i in range(25):
        stream = bytearray(code + secret)
        match i % 5:
            case 0:
                del stream[rng.integers(len(stream)) :]
            case 1:
                stream = bytearray(secret + code)
            case 2:
                at = int(rng.integers(0x400))
                stream[at : at + 64] = os.urandom(64)
            case 3:
                stream[: len(code)] = bytes(len(code))
            case 4:
                # The messages to calls come before the weights are there.
                stream[len(code) :] = ROWS.pack(1) * 3
        with spoken_to(hostile_target) as engine:
            channel = engine._channel
            with contextlib.suppress(OSError):
                while stream:
                    size = int(rng.integers(1, len(stream) + 1))
                    channel.sendall(stream[:size])
                    del stream[:size]
                channel.shutdown(socket.SHUT_WR)
            came = answers(channel)
            memory = engine._memory.tobytes()
        assert found(secret, came) == found(secret, memory) == 0
        assert len(came) <= 2 * ANSWER_BYTES


@pytest.mark.parametrize("rows", [2**32 - 1, 257, 0, 2**31])
def test_a_call_for_rows_that_there_is_no_room_for_ends_the_process(hostile_target, rows):
    with start_engine(hostile_target, "native") as engine:
        engine._channel.settimeout(20.0)
        engine._channel.sendall(ROWS.pack(rows))
        assert answers(engine._channel) == b""


def test_exchanged_weights_are_another_modules(hostile_target):
    """A module is what its manifest says; see also CompiledModule."""
    half = len(hostile_target.weights) // 2
    exchanged = hostile_target.weights[half:] + hostile_target.weights[:half]
    with pytest.raises(InputError, match="its weights are not the manifest's"):
        type(hostile_target)(hostile_target.manifest, hostile_target.builds, exchanged)


def test_settings_of_absurd_length_end_the_process(hostile_target, monkeypatch):
    monkeypatch.setattr(EngineSettings, "to_bytes", lambda _: b"x" * ((1 << 20) + 1))
    with pytest.raises(EngineError, match="its process ended with exit code 1"):
        start_engine(hostile_target, "native")


# ---- a process that answers what it likes


def test_answers_that_mean_nothing_are_errors(hostile_target):
    x = np.zeros((1, D), np.float32)
    hostile = (
        (EngineAnswer(99).to_bytes(), "answered with an unknown status"),
        (EngineAnswer(2**32 - 1).to_bytes(), "answered with an unknown status"),
        (EngineAnswer(Status.REFUSED).to_bytes(), "answered with an unknown status"),
        (b"", "its process ended with exit code 0"),
        (b"short", "its process ended with exit code 0"),
    )
    for answer, text in hostile:
        with start_engine(hostile_target, "native") as engine:
            ours, theirs = socket.socketpair()
            engine._channel.close()
            engine._channel = ours
            with theirs:
                theirs.sendall(answer)
                theirs.shutdown(socket.SHUT_WR)
                with pytest.raises(EngineError, match=text):
                    engine.run([x])
            with pytest.raises(EngineError, match="cannot be used any more"):
                engine.run([x])


DRIP = (
    hand_written.SYSTEM_CALLS
    + """
RUN {
  static char nothing[1];
  long tenth[2] = {0, 100000000};
  for (;;) {
    call(230, 1, 0, (long)tenth, 0, 0, 0);
    call(44, (int)*(const float *)inputs, (long)nothing, 1, 0, 0, 0);
  }
}
"""
)


def test_a_module_that_answers_byte_by_byte_gets_no_more_time():
    """Each byte comes in time; all of them would take a hundred times as long."""
    with start_engine(hand_written.made(DRIP), "native", timeout_s=20.0) as engine:
        command = Path(f"/proc/{engine.pid}/cmdline").read_bytes().split(b"\0")
        control = int(command[command.index(b"native") + 1])
        with pytest.raises(EngineError, match="sent a part of an answer"):
            engine.run([np.full((1, 4), control, np.float32)])
        with pytest.raises(EngineError, match="cannot be used any more"):
            engine.run([np.zeros((1, 4), np.float32)])


def test_an_answer_is_read_as_it_was_written():
    answer = EngineAnswer(Status.SIZE, 3, 2**63, 5, "text")
    assert EngineAnswer.from_bytes(answer.to_bytes()) == answer
    assert len(answer.to_bytes()) == ANSWER_BYTES
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(LENGTH.pack(7))
        assert receive(ours, LENGTH.size) == struct.pack("<I", 7)
        theirs.close()
        with pytest.raises(EOFError):
            receive(ours, 1)


def test_what_a_process_says_while_it_loads_is_printed_harmlessly(hostile_target, monkeypatch):
    answer = EngineAnswer(Status.REFUSED, text="\x1b[2J" * 99)
    monkeypatch.setattr(module_engine.EngineAnswer, "from_bytes", lambda _: answer)
    with pytest.raises(InputError) as caught:
        start_engine(hostile_target, "native")
    assert str(caught.value).startswith(r"module 'hand', engine native: \x1b[2J\x1b[2J")
    assert str(caught.value).isprintable()
