"""Observes an engine as the owner of its machine can, who sees sizes and times but no memory."""

import re
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from cloister.base.rng import Csprng
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import ModuleTensor
from cloister.bundle.sealed_bundle import hidden_bytes
from cloister.trusted.engines.module_engine import EngineKind, start_engine
from cloister.trusted.engines.padding_profile import PaddingProfile

FUEL = "instructions executed"
CHANNELS: dict[str, tuple[str, ...]] = {
    "size of the bundle": ("bundle_bytes",),
    "memory of the process": ("memory_bytes", "peak_bytes"),
    "time to load": ("load_ms",),
    "time to answer": ("answer_ms",),
    "processor time": ("processor_ms",),
    "all of these": (
        "bundle_bytes",
        "memory_bytes",
        "peak_bytes",
        "load_ms",
        "answer_ms",
        "processor_ms",
    ),
    FUEL: ("fuel",),
}
"""What is learned from what: a name, and the fields of an observation."""


@dataclass(frozen=True)
class EngineObservation:
    """One start of an engine and some calls.

    bundle_bytes   of the sealed hidden part
    memory_bytes   that the process has in RAM after the calls; peak_bytes: at most until then
    answer_ms      median over the calls, and likewise what follows
    processor_ms   that the process ran, as the kernel counts it
    fuel           WebAssembly instructions; 0 for machine code, which an observer with the
                   processor's counters would have to measure
    """

    bundle_bytes: int
    memory_bytes: int
    peak_bytes: int
    load_ms: float
    answer_ms: float
    processor_ms: float
    fuel: int


def observe(
    module: CompiledModule,
    kind: EngineKind,
    *,
    padding: PaddingProfile | None,
    calls: int,
    rng: Csprng,
) -> EngineObservation:
    """Start an engine, call it with random inputs, and note what is seen.

    Raises   InputError for padding that the module exceeds, EngineError
    """
    bundle = hidden_bytes(module)
    bundle += padding.added_bytes(bundle) if padding else 0
    answers, processor = [], []
    with start_engine(module, kind, padding=padding) as engine:
        for inputs in _random_inputs(module.manifest.inputs, calls, rng):
            before, begun = _processor_ns(engine.pid), time.perf_counter_ns()
            engine.run(inputs)
            answers.append(time.perf_counter_ns() - begun)
            processor.append(_processor_ns(engine.pid) - before)
        memory, peak = _resident_bytes(engine.pid)
        load_ms = engine.measured.load_ms
    answer_ms, processor_ms = _median_ms(answers), _median_ms(processor)
    return EngineObservation(bundle, memory, peak, load_ms, answer_ms, processor_ms, 0)


def observe_fuel(module: CompiledModule, *, count: int, rng: Csprng) -> tuple[int, ...]:
    """WebAssembly instructions of so many calls with random inputs.

    Raises   InputError for a module without that build, EngineError
    """
    found: list[int] = []
    with start_engine(module, "wasm", fuel=True) as engine:
        for inputs in _random_inputs(module.manifest.inputs, count, rng):
            engine.run(inputs)
            found.extend(engine.fuel)
    return tuple(found)


def table_of(observations: Sequence[EngineObservation]) -> dict[str, Float64[np.ndarray, " count"]]:
    """The observations by field."""
    columns = np.array([astuple(one) for one in observations], np.float64).T
    return dict(zip(EngineObservation.__dataclass_fields__, columns, strict=True))


def _random_inputs(
    tensors: Sequence[ModuleTensor], count: int, rng: Csprng
) -> list[list[np.ndarray]]:
    return [[_random_input(one, rng) for one in tensors] for _ in range(count)]


def _random_input(tensor: ModuleTensor, rng: Csprng) -> np.ndarray:
    """Numbers between -1 and 1; of integers, which may be positions in a table, 0 and 1."""
    drawn = np.frombuffer(rng.random_bytes(int(np.prod(tensor.shape))), np.uint8)
    values = drawn & 1 if tensor.dtype.startswith("int") else drawn / 127.5 - 1.0
    return values.astype(tensor.dtype).reshape(1, *tensor.shape)


def _median_ms(values_ns: Sequence[int]) -> float:
    return float(np.median(values_ns)) / 1e6


def _processor_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])


def _resident_bytes(pid: int) -> tuple[int, int]:
    """Of a process in RAM: now, and at most until now."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    kib = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", text))
    return int(kib["VmRSS"]) << 10, int(kib["VmHWM"]) << 10
