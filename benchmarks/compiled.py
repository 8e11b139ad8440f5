"""Compiled modules against ONNX Runtime float32, one sample, by turns on the same cores.

A whole network is compiled and runs in its engine's process, as a hidden part does. `compiled_ms`
is the time in the module, `call_ms` also has the way to the process and back. CPU times do not
count what neighbours on the core take; the engine's are those of its whole process. Modules have
one thread; `--threads` is for ONNX Runtime.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Literal

import numpy as np
import typer

from benchmarks import networks, options
from benchmarks.environment import environment
from cloister.bundle.compiled_module import CompiledModule
from cloister.cli.console import err
from cloister.cli.speed import OrtBaseline, random_input
from cloister.cli.timing import Timing, interleaved
from cloister.codegen.compile_module import compile_module
from cloister.errors import InputError
from cloister.graph.onnx.read import from_model
from cloister.trusted.engines.module_engine import ModuleEngine, start_engine

TOLERANCE = 1e-4
"""Of outputs, relative to the largest one."""
ORT = "onnxruntime"


def measure(
    model: options.Models = ["vgg16"],  # noqa: B006
    target: Annotated[
        Literal["native", "wasm"], typer.Option(help="wasm: measured beside native.")
    ] = "native",
    build: Annotated[
        str, typer.Option(metavar="NAME", help="Of native builds; default: the fastest.")
    ] = "",
    contraction: Annotated[
        Literal["fma", "off"], typer.Option(help="Rounding of native builds.")
    ] = "fma",
    threads: options.Threads = 1,
    repeats: options.Repeats = 9,
) -> dict[str, object]:
    """Medians in ms; ratios are to ONNX Runtime in the same run."""
    found = []
    for name in model:
        err().print(f"{name} {target} ...")
        row = _measure(name, target, build, contraction, threads, repeats)
        found.append({"model": name, **row, "repeats": repeats, **environment()})
    return found[0] if len(found) == 1 else {"results": found}


def _measure(
    name: str, target: str, build: str, contraction: str, threads: int, repeats: int
) -> dict[str, object]:
    proto = networks.build(name)
    graph = from_model(proto, name=name)
    feeds = random_input(graph, 1)
    onnxruntime = OrtBaseline(proto, threads)
    begun = time.perf_counter()
    kinds = ("native",) if target == "native" else ("native", "wasm")
    module = compile_module(graph, builds=kinds, contraction=contraction, salt=bytes(32))
    compile_s = time.perf_counter() - begun
    runs = {ORT: lambda: onnxruntime.run(feeds)}
    computed: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with ExitStack() as stack:
        engines = {
            kind: stack.enter_context(start_engine(module, kind, build=build or None))
            for kind in kinds
        }
        (expected,) = onnxruntime.run(feeds)
        error = max(_error(engine, feeds, expected) for engine in engines.values())
        runs |= {kind: _timed(engines[kind], feeds, computed[kind]) for kind in kinds}
        times = interleaved(runs, repeats=repeats)
        used = engines[target]
        return {
            "weights": "file" if name.endswith(".onnx") else "random, seeded",
            "target": target,
            "build": used.build,
            "contraction": "off" if target == "wasm" else contraction,
            "threads": threads,
            **_times(times, computed, target),
            "largest_error": error,
            "load_ms": used.measured.load_ms,
            "compile_s": compile_s,
            **_sizes(module, used.build),
        }


def _timed(
    engine: ModuleEngine, feeds: np.ndarray, computed: list[tuple[float, float]]
) -> Callable[[], None]:
    """Runs the engine and appends the milliseconds of its module and its process's CPU time."""

    def run() -> None:
        begun_ms = _cpu_ms(engine.pid)
        engine.run([feeds])
        computed.append((engine.measured.compute_ms, _cpu_ms(engine.pid) - begun_ms))

    return run


def _cpu_ms(pid: int) -> float:
    """CPU time of another process: the clock that clock_getcpuclockid(3) names on Linux."""
    return 1e3 * time.clock_gettime(~pid << 3 | 2)


def _error(engine: ModuleEngine, feeds: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference between the outputs, relative to the largest output.

    Raises   InputError when the two do not compute the same model
    """
    (found,) = engine.run([feeds])
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise InputError(f"the {engine.build} build and ONNX Runtime do not compute the same model")
    return error


def _times(
    times: dict[str, Timing], computed: dict[str, list[tuple[float, float]]], target: str
) -> dict[str, float]:
    # The first turn warms up.
    walls, cpus = (
        {kind: statistics.median(turn[i] for turn in turns[1:]) for kind, turns in computed.items()}
        for i in range(2)
    )
    ort_ms, ort_cpu_ms = 1e3 * times[ORT].wall_s, 1e3 * times[ORT].cpu_s
    found = {
        "onnxruntime_ms": ort_ms,
        "compiled_ms": walls[target],
        "ratio": walls[target] / ort_ms,
        "onnxruntime_cpu_ms": ort_cpu_ms,
        "compiled_cpu_ms": cpus[target],
        "cpu_ratio": cpus[target] / ort_cpu_ms,
        "call_ms": 1e3 * times[target].wall_s,
    }
    if target == "wasm":
        found |= {
            "native_ms": walls["native"],
            "to_native": walls["wasm"] / walls["native"],
            "native_cpu_ms": cpus["native"],
            "cpu_to_native": cpus["wasm"] / cpus["native"],
        }
    return found


def _sizes(module: CompiledModule, build: str) -> dict[str, int]:
    return {
        "weights_bytes": module.manifest.weights_bytes,
        "arena_bytes": module.manifest.arena_bytes,
        "binary_bytes": len(module.builds[build]),
        "source_bytes": len(module.source),
    }
