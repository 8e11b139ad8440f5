"""The process of an engine: it locks itself, loads one module, and runs it for each message.

    1. It gets settings, which are sizes and shapes, and gives up what it does not need.
    2. It locks itself for loading. From here on secrets may come.
    3. It gets the code and the weights and loads them.
    4. It locks itself for running. From here on the module's own instructions run.
    5. For each message it runs the module on samples in shared memory.

Inputs and outputs are copied: a module works in memory that no other process can read or change,
and outputs leave it when the module has said that they are done.
"""

import ctypes
import importlib
import mmap
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from cloister.errors import CloisterError, one_line
from cloister.trusted.engines.engine_messages import (
    LENGTH,
    MAX_SETTINGS_BYTES,
    ROWS,
    EngineAnswer,
    EngineSettings,
    Status,
    receive,
    receive_into,
)
from cloister.trusted.engines.guarded_memory import GuardedMemory, release_freed
from cloister.trusted.engines.sandbox import AllowedCalls, end_with, isolate, lock

_KINDS = {"native": "native_module", "wasm": "wasm_module", "onnxruntime": "onnx_module"}
_FAILURES = (
    CloisterError,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    ValueError,
)


class LoadedModule(Protocol):
    """A module in this process.

    weights   memory for the packed weights, filled by the caller before `complete`
    inputs    address of memory for one sample's inputs; outputs likewise
    fuel      that the latest run took, if it is counted
    """

    weights: memoryview
    inputs: int
    outputs: int
    fuel: int

    def size(self, which: int) -> int:
        """What `cloister_module_size` says."""

    def complete(self) -> None:
        """The weights are there."""

    def run(self) -> int:
        """Compute one sample: 0, or the number of what was wrong, and then nothing was written."""

    def wipe(self) -> None:
        """Overwrite what the module knows."""


def main(arguments: Sequence[str]) -> int:
    """Serve an engine until it is closed.

    arguments   kind, then descriptors: a socket, shared memory, a pipe that ends with the engine
    """
    kind, *numbers = arguments
    control, shared, lifeline = map(int, numbers)
    runtime = importlib.import_module(f"cloister.trusted.engines.{_KINDS[kind]}")
    with socket.socket(fileno=control) as channel:
        (length,) = LENGTH.unpack(receive(channel, LENGTH.size))
        if length > MAX_SETTINGS_BYTES:
            return 1
        settings = EngineSettings.from_bytes(receive(channel, length))
        memory = mmap.mmap(shared, settings.rows * (settings.input_bytes + settings.output_bytes))
        os.close(shared)
        os.dup2(1, 2)  # to /dev/null: what it prints from here on could quote what it knows
        end_with(lifeline)
        isolate(settings.memory_bytes, reserved_bytes=runtime.RESERVED_BYTES)
        threads = settings.threads > 1
        lock(
            AllowedCalls.LOADING_WITH_THREADS if threads else AllowedCalls.LOADING,
            descriptor=control,
        )
        channel.sendall(EngineAnswer().to_bytes())
        try:
            _serve(channel, settings, memory, runtime.load)
        finally:
            # Python's own end would need more system calls, and print.
            os._exit(0)


def _serve(
    channel: socket.socket,
    settings: EngineSettings,
    memory: mmap.mmap,
    load: Callable[[EngineSettings, memoryview], LoadedModule],
) -> None:
    try:
        module, padding, answer = _load(channel, settings, load)
    except _FAILURES as error:
        # Text of our own errors; of others their class, for they may quote what they read.
        text = one_line(error) if isinstance(error, CloisterError) else type(error).__name__
        channel.sendall(EngineAnswer(Status.REFUSED, text=text).to_bytes())
        return
    channel.sendall(answer.to_bytes())
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    while answer.status == Status.DONE:
        (rows,) = ROWS.unpack(receive(channel, ROWS.size))
        if not 0 < rows <= settings.rows:
            break
        begun_ns = time.perf_counter_ns()
        answer = _run(module, settings, address, rows)
        _wait_for_grid(begun_ns, settings.grid_ns)
        channel.sendall(answer.to_bytes())
    module.wipe()
    padding.wipe()


def _load(
    channel: socket.socket,
    settings: EngineSettings,
    load: Callable[[EngineSettings, memoryview], LoadedModule],
) -> tuple[LoadedModule, GuardedMemory, EngineAnswer]:
    # The grid begins with the request, as in `_serve`: not while the caller has sent nothing yet.
    channel.recv(1, socket.MSG_PEEK)
    begun_ns = time.perf_counter_ns()
    code = receive(channel, settings.code_bytes)
    module = load(settings, memoryview(code))
    code[:] = bytes(len(code))
    release_freed()  # a compiler's own copies and tables
    receive_into(channel, module.weights)
    module.complete()
    padding = GuardedMemory(settings.padding_bytes)
    receive_into(channel, padding.view)
    lock(AllowedCalls.RUNNING, descriptor=channel.fileno())
    for which, nbytes in enumerate(settings.sizes):
        if module.size(which) != nbytes:
            return module, padding, EngineAnswer(Status.SIZE, which)
    _wait_for_grid(begun_ns, settings.grid_ns)
    return module, padding, EngineAnswer()


def _wait_for_grid(begun_ns: int, grid_ns: int) -> None:
    """Compute until the next multiple of the grid: processor time is visible too."""
    now_ns = time.perf_counter_ns()
    end_ns = now_ns + (begun_ns - now_ns) % grid_ns
    while time.perf_counter_ns() < end_ns:
        pass


def _run(module: LoadedModule, settings: EngineSettings, address: int, rows: int) -> EngineAnswer:
    taken_ns = fuel = 0
    outputs = address + settings.rows * settings.input_bytes
    for row in range(rows):
        source = address + row * settings.input_bytes
        ctypes.memmove(module.inputs, source, settings.input_bytes)
        begun_ns = time.perf_counter_ns()
        status = module.run()
        taken_ns += time.perf_counter_ns() - begun_ns
        fuel += module.fuel
        if status:
            return EngineAnswer(Status.FAILED, status & 0xFFFFFFFF, taken_ns, fuel)
        target = outputs + row * settings.output_bytes
        ctypes.memmove(target, module.outputs, settings.output_bytes)
    return EngineAnswer(Status.DONE, 0, taken_ns, fuel)
