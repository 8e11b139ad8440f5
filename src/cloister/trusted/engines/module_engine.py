"""Runs a compiled module in a process of its own; one loader for every kind of build.

The module's code and weights reach the process over a socket, never as a file, an argument or a
variable of the environment. What comes back are outputs in shared memory and a status.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Manifest, ModuleTensor, offsets, span
from cloister.errors import EngineError, InputError, ShapeError, printable
from cloister.trusted.engines.engine_messages import (
    ANSWER_BYTES,
    LENGTH,
    ROWS,
    EngineAnswer,
    EngineSettings,
    Status,
)
from cloister.trusted.engines.padding_profile import PaddingProfile
from cloister.trusted.engines.processor import best_build, require_x86_64
from cloister.trusted.engines.sandbox import forbid_core_dumps
from cloister.wire.messages import TensorSpec
from cloister.wire.process import python, start, thread_settings
from cloister.wire.shm.arena import Arena

EngineKind = Literal["native", "wasm", "onnxruntime"]
DEFAULT_START_TIMEOUT_S = 120.0
DEFAULT_CALL_TIMEOUT_S = 120.0
_EXIT_WAIT_S = 2.0
_MAX_ROWS = 256
_MAX_PRINTED_BYTES = 1 << 16
_SHARED_BYTES = 4 << 20
_ROOM_BYTES = {"native": 64 << 20, "wasm": 512 << 20, "onnxruntime": 512 << 20}
"""Of memory for Python and the runtime, beside what the module takes."""
_CODE_COPIES = {"native": 3, "wasm": 200, "onnxruntime": 8}
"""Of a build's bytes: as it arrives and as it is loaded; a compiler's own tables are larger."""


@dataclass(frozen=True)
class EngineTimes:
    """Milliseconds that the parts of an engine took.

    start        until the process was locked, before it had anything of the module
    load         until the module was in its memory, compiled and checked
    transition   of the latest `run`: everything but the module's own time
    compute      of the latest `run`: in the module
    """

    start_ms: float
    load_ms: float
    transition_ms: float = 0.0
    compute_ms: float = 0.0


class ModuleEngine:
    """A module in a process of its own. Made by `start_engine`; one call at a time.

    kind        native, wasm or onnxruntime
    build       the build that runs, by its name in the manifest
    measured    where the time went
    fuel        of each sample of the latest `run`, if it is counted: WebAssembly instructions
    """

    def __init__(
        self,
        module: CompiledModule,
        kind: EngineKind,
        build: str,
        settings: EngineSettings,
        *,
        timeout_s: float,
    ) -> None:
        self.kind, self.build = kind, build
        self.fuel: tuple[int, ...] = ()
        self._manifest = module.manifest
        self._settings = settings
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._over: str | None = None
        descriptors: list[int] = []
        self._arena = Arena(lambda *new: descriptors.append(os.dup(new[2])))
        nbytes = settings.rows * (settings.input_bytes + settings.output_bytes)
        region = self._arena.allocate_alone(nbytes)
        self._memory = self._arena.array(region, TensorSpec(np.dtype(np.uint8), (nbytes,)))
        self._inputs = _views(self._memory, 0, module.manifest.inputs, settings.rows)
        at = settings.rows * settings.input_bytes
        self._outputs = _views(self._memory, at, module.manifest.outputs, settings.rows)
        begun = time.perf_counter()
        self._start(descriptors)
        try:
            started = self._greet(settings)
            self._load(module.builds[build], module.weights[: settings.weights_bytes])
        except BaseException:
            self.close()
            raise
        ended = time.perf_counter()
        self.measured = EngineTimes(1e3 * (started - begun), 1e3 * (ended - started))

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    def run(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The module's outputs for a batch; the first axis of each array is the batch.

        Raises   ShapeError for inputs that are not the module's, EngineError when the module fails
                 or its process died, hung or was closed: then no output is returned
        """
        batch = self._checked(inputs)
        made = tuple(np.empty((batch, *one.shape), one.dtype) for one in self._manifest.outputs)
        begun, compute_ns, fuel = time.perf_counter(), 0, []
        with self._lock:
            self._check_open()
            try:
                for first in range(0, batch, self._settings.rows):
                    rows = slice(first, min(first + self._settings.rows, batch))
                    answer = self._call([one[rows] for one in inputs], [one[rows] for one in made])
                    compute_ns += answer.compute_ns
                    fuel.append(answer.fuel)
            except BaseException as error:
                self._end(_reason(error))
                raise
            wall_ms, compute_ms = 1e3 * (time.perf_counter() - begun), compute_ns / 1e6
            self.fuel = tuple(fuel) if self._settings.fuel else ()
            self.measured = EngineTimes(
                self.measured.start_ms, self.measured.load_ms, wall_ms - compute_ms, compute_ms
            )
        return made

    def close(self) -> None:
        """End the process, which overwrites the module; overwrite what this side shares with it."""
        with self._lock:
            if self._over is None:
                # It overwrites and ends; if it cannot, it is killed below.
                with contextlib.suppress(OSError):
                    self._channel.sendall(ROWS.pack(0))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_EXIT_WAIT_S)
            self._end("it was closed")

    def __enter__(self) -> "ModuleEngine":
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.close()

    # ---- the process

    def _start(self, shared: list[int]) -> None:
        ours, theirs = socket.socketpair()
        ends, alive = os.pipe()
        given = [theirs.fileno(), *shared, ends]
        try:
            self._process = start(
                python("-m", "cloister.trusted.engines", self.kind, *map(str, given)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,  # until it is locked
                descriptors=given,
                detached=True,
                more=thread_settings(1),  # ONNX Runtime's are those of the settings
            )
        except OSError as error:
            ours.close()
            os.close(alive)
            raise EngineError(f"{self._name}: cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
            for descriptor in given[1:]:
                os.close(descriptor)
        self._channel, self._alive = ours, alive

    def _greet(self, settings: EngineSettings) -> float:
        self._channel.settimeout(DEFAULT_START_TIMEOUT_S)
        head = settings.to_bytes()
        self._send(LENGTH.pack(len(head)) + head)
        self._receive_ready()
        self._close_errors()
        return time.perf_counter()

    def _load(self, code: bytes, weights: bytes) -> None:
        for part in (code, weights, bytes(self._settings.padding_bytes)):
            self._send(part)
        self._receive_ready()

    def _call(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> EngineAnswer:
        rows = len(inputs[0])
        for view, array in zip(self._inputs, inputs, strict=True):
            view[:rows] = array
        self._channel.settimeout(rows * self._timeout_s)
        self._send(ROWS.pack(rows))
        answer = self._receive()
        if answer.status == Status.FAILED:
            raise EngineError(f"{self._name}: the module ended with status {answer.detail}")
        if answer.status != Status.DONE:
            raise EngineError(f"{self._name}: its process answered with an unknown status")
        for view, array in zip(self._outputs, outputs, strict=True):
            array[...] = view[:rows]
        return answer

    def _send(self, data: bytes) -> None:
        # The process may have said why it takes no more, or hang; the answer is read next.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            self._channel.sendall(data)

    def _receive_ready(self) -> None:
        answer = self._receive()
        match answer.status:
            case Status.DONE:
                return
            case Status.REFUSED:
                raise InputError(f"{self._name}: {printable(answer.text)}")
            case Status.SIZE:
                raise InputError(
                    f"{self._name}: the module's size {answer.detail} is not its manifest's"
                )
        raise EngineError(f"{self._name}: its process answered with an unknown status")

    def _receive(self) -> EngineAnswer:
        try:
            # An answer is sent at once and comes at once. One that comes in parts is the module's,
            # and each part would begin the time that it may take anew.
            answer = self._channel.recv(ANSWER_BYTES)
            if len(answer) < ANSWER_BYTES:
                raise EOFError
            return EngineAnswer.from_bytes(answer)
        except TimeoutError as error:
            raise EngineError(f"{self._name}: did not answer in time, and was ended") from error
        except (EOFError, OSError) as error:
            raise EngineError(f"{self._name}: {self._how_it_ended()}") from error

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return "its process closed its socket, or sent a part of an answer"
        if code == -signal.SIGSYS:
            return "its process was killed: it made a system call that engines may not make"
        if code < 0:
            return f"its process was killed by signal {-code}"
        return f"its process ended with exit code {code}{self._last_line()}"

    def _last_line(self) -> str:
        """What the process, which has ended, printed before it was locked."""
        errors = self._process.stderr
        if errors is None or errors.closed:
            return ""
        lines = errors.read(_MAX_PRINTED_BYTES).decode("utf-8", "replace").splitlines()
        return f": {printable(lines[-1], most=160)}" if lines else ""

    def _close_errors(self) -> None:
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _end(self, reason: str) -> None:
        if self._over is not None:
            return
        self._over = reason
        self._process.kill()
        self._process.wait()
        self._close_errors()
        self._channel.close()
        os.close(self._alive)
        self._memory[:] = 0
        self._arena.close()

    # ---- what goes in

    @property
    def _name(self) -> str:
        return f"module {self._manifest.name!r}, engine {self.kind}"

    def _check_open(self) -> None:
        if self._over is not None:
            raise EngineError(f"{self._name}: cannot be used any more: {self._over}")

    def _checked(self, inputs: Sequence[np.ndarray]) -> int:
        """The batch's size."""
        wanted = self._manifest.inputs
        if len(inputs) != len(wanted):
            raise ShapeError(f"{self._name}: takes {len(wanted)} inputs, not {len(inputs)}")
        batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 0
        for one, array in zip(wanted, inputs, strict=True):
            if array.shape != (batch, *one.shape) or array.dtype != np.dtype(one.dtype):
                raise ShapeError(
                    f"{self._name}: input {one.name!r} is {array.dtype} {array.shape}, not "
                    f"{one.dtype} {('batch', *one.shape)}"
                )
        return batch


def start_engine(
    module: CompiledModule,
    kind: EngineKind,
    *,
    build: str | None = None,
    threads: int = 1,
    fuel: bool = False,
    padding: PaddingProfile | None = None,
    timeout_s: float = DEFAULT_CALL_TIMEOUT_S,
) -> ModuleEngine:
    """Start the process of an engine, locked and with the module loaded.

    build       of the module's native builds; None: the fastest that this processor runs
    threads     of ONNX Runtime; other engines have one
    fuel        count what WebAssembly executes: a constant for each module if its control flow
                does not depend on data
    padding     hides the module's own sizes and times from the owner of the machine; not of ONNX
                Runtime, whose memory is its own
    timeout_s   for one sample

    Raises   InputError for a module that cannot be loaded, EngineError
    """
    forbid_core_dumps()  # this process has the module too
    manifest = module.manifest
    require_x86_64(name=manifest.name)
    chosen = _build(manifest, kind, build)
    if fuel and kind != "wasm":
        raise InputError(f"module {manifest.name!r}: only the engine wasm counts fuel")
    if padding and kind == "onnxruntime":
        raise InputError(f"module {manifest.name!r}: the engine onnxruntime cannot be padded")
    settings = _settings(module, kind, chosen, threads, fuel)
    if padding:
        settings = _padded(settings, padding)
    return ModuleEngine(module, kind, chosen, settings, timeout_s=timeout_s)


def _build(manifest: Manifest, kind: EngineKind, build: str | None) -> str:
    if kind == "native":
        chosen = build or best_build(manifest.builds, name=manifest.name)
    elif kind == "wasm":
        chosen = "wasm"
        if importlib.util.find_spec("wasmtime") is None:
            raise InputError("the engine wasm needs wasmtime: pip install 'cloister[compile]'")
    elif kind == "onnxruntime":
        chosen = "onnx"
    else:
        raise InputError(f"engine {kind!r} is not one of native, wasm, onnxruntime")
    if chosen not in manifest.builds:
        raise InputError(
            f"module {manifest.name!r}: has no build {chosen}, only {', '.join(manifest.builds)}; "
            "choose another engine, or ask its vendor for that build"
        )
    return chosen


def _settings(
    module: CompiledModule, kind: EngineKind, build: str, threads: int, fuel: bool
) -> EngineSettings:
    manifest = module.manifest
    inputs, outputs = manifest.input_bytes, manifest.output_bytes
    # The weights of an ONNX model are part of it, and it says itself what it needs.
    weights, arena = (0, 0) if build == "onnx" else (manifest.weights_bytes, manifest.arena_bytes)
    code = len(module.builds[build])
    taken = _ROOM_BYTES[kind] + _CODE_COPIES[kind] * code
    return EngineSettings(
        kind=kind,
        sizes=(manifest.abi, weights, inputs, outputs, arena),
        code_bytes=code,
        rows=1 if fuel else max(1, min(_MAX_ROWS, _SHARED_BYTES // max(1, inputs + outputs))),
        memory_bytes=taken + weights + inputs + outputs + manifest.arena_bytes,
        threads=threads,
        fuel=fuel,
        inputs=tuple((one.dtype, one.shape) for one in manifest.inputs),
        outputs=tuple((one.dtype, one.shape) for one in manifest.outputs),
    )


def _padded(settings: EngineSettings, padding: PaddingProfile) -> EngineSettings:
    taken = settings.code_bytes + settings.weights_bytes + settings.arena_bytes
    added = padding.added_bytes(taken)
    return replace(
        settings,
        padding_bytes=added,
        grid_ns=padding.grid_ns,
        memory_bytes=settings.memory_bytes + added,
    )


def _views(
    memory: np.ndarray, at: int, tensors: tuple[ModuleTensor, ...], rows: int
) -> list[np.ndarray]:
    """Each tensor of all rows: an array that strides over the others."""
    table = memory[at : at + rows * span(tensors)].reshape(rows, -1)
    return [
        table[:, offset : offset + one.nbytes].view(one.dtype).reshape(rows, *one.shape)
        for one, offset in zip(tensors, offsets(tensors), strict=True)
    ]


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, EngineError) else type(error).__name__
