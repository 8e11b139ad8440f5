"""`cloister bench inference`: protected inference against plain float32 on the same core.

Everything is measured in one run, interleaved: the fastest of ONNX Runtime and PyTorch float32 is
the baseline, and the ratio is its CPU time per input over that of the trusted process. The trusted
time is the whole call, from the input array to the released outputs, less the time spent making
pads, which is reported as offline time; the worker is a process of its own.
"""

import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer

from cloister import _native
from cloister.cli import options
from cloister.cli.bench import models
from cloister.cli.bench.baselines import OrtBaseline, Timing, TorchBaseline, interleaved
from cloister.cli.console import emit_json, err, out, table
from cloister.crypto.csprng import InsecureSeededRandom
from cloister.errors import CloisterError, InputError
from cloister.graph.export import to_model
from cloister.graph.graph import Graph
from cloister.graph.onnx_import import from_model
from cloister.graph.passes import prepare
from cloister.plan import policies
from cloister.trusted.report import Report
from cloister.trusted.session import Session

PACKAGES = ("cloister", "numpy", "onnxruntime", "torch")
INPUT_SEED = 1
PRIVATE = "cloister"


def inference(
    model: Annotated[
        str, typer.Option("--model", help="vgg16, resnet50, ... or FILE.onnx.")
    ] = "vgg16",
    policy: options.PolicyName = None,
    threads: options.Threads = 1,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", min=1, help="Threads of the worker's process.")
    ] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per call.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure trusted time per input against the fastest plain float32 engine."""
    proto = open_model(model)
    graph = prepare(from_model(proto, name=model))
    feeds = random_input(graph, batch)
    plan = policies.make(policy or "slalom", graph, calibration=feeds)
    reports: list[Report] = []
    engines = dict(baselines(proto, graph, feeds, threads))
    with Session(plan, threads=threads, worker_threads=worker_threads, batch=batch) as session:
        runs: dict[str, Callable[[], object]] = {
            **engines,
            PRIVATE: lambda: reports.append(session.run(feeds).report),
        }
        for run in runs.values():  # warm-up
            run()
        reports.clear()
        timings = interleaved(runs, repeats=repeats)
    found = {
        "model": model,
        "weights": "file" if Path(model).suffix == ".onnx" else "random, seeded",
        "policy": plan.policy,
        "threads": threads,
        "worker_threads": worker_threads,
        "batch": batch,
        "repeats": repeats,
        **_times(timings, reports),
        "soundness_bits": reports[-1].soundness_bits,
        "cpu": cpu_name(),
        "isa": _native.isa(),
        "versions": versions(),
    }
    if json:
        emit_json(found)
    else:
        _show(found)


def open_model(model: str) -> onnx.ModelProto:
    """A model file, or a built network by its name."""
    return models.load_any(Path(model)) if model.endswith(".onnx") else models.build(model)


def random_input(graph: Graph, batch: int) -> np.ndarray:
    """Inputs uniform in [0, 1), the same in every run: times do not depend on values."""
    if len(graph.inputs) != 1:
        raise InputError("the benchmark measures models with one input")
    known = graph.types[graph.inputs[0]]
    shape = tuple(batch if size is None else size for size in known.shape)
    data = InsecureSeededRandom(INPUT_SEED).random_bytes(int(np.prod(shape)))
    return (np.frombuffer(data, np.uint8).reshape(shape) / np.float32(256)).astype(known.dtype)


def baselines(
    proto: onnx.ModelProto, graph: Graph, feeds: np.ndarray, threads: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    """The float32 engines that are installed and take this model."""
    onnxruntime = OrtBaseline(proto, threads)
    yield "onnxruntime", lambda: onnxruntime.run(feeds)
    try:
        # Constants are folded for PyTorch, as ONNX Runtime folds them for itself.
        torch = TorchBaseline(to_model(graph), threads)
        yield "torch", lambda: torch.run(feeds)
    except CloisterError as error:
        err().print(f"PyTorch is not measured: {error}", style="yellow")


def _times(timings: Mapping[str, Timing], reports: Sequence[Report]) -> dict[str, object]:
    """Medians per input; the ratio compares CPU time with CPU time."""
    inputs = reports[0].inputs
    offline = [report.offline_ms / inputs for report in reports]
    private = timings[PRIVATE]
    trusted = [1e3 * cpu / inputs - pads for cpu, pads in zip(private.cpus_s, offline, strict=True)]
    engines = {
        name: {
            "ms": 1e3 * timing.cpu_s / inputs,
            "min_ms": 1e3 * min(timing.cpus_s) / inputs,
            "max_ms": 1e3 * max(timing.cpus_s) / inputs,
            "wall_ms": 1e3 * timing.wall_s / inputs,
        }
        for name, timing in timings.items()
        if name != PRIVATE
    }
    fastest = min(engines, key=lambda name: engines[name]["ms"])
    trusted_ms = statistics.median(trusted)
    return {
        "baseline_engine": fastest,
        "baseline_ms": engines[fastest]["ms"],
        "engines": engines,
        "trusted_ms": trusted_ms,
        "trusted_min_ms": min(trusted),
        "trusted_max_ms": max(trusted),
        "ratio": engines[fastest]["ms"] / trusted_ms,
        "offline_ms": statistics.median(offline),
        "worker_ms": statistics.median(report.worker_ms / inputs for report in reports),
        "private_wall_ms": 1e3 * private.wall_s / inputs,
    }


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _show(found: Mapping[str, object]) -> None:
    console = out()
    console.print(
        f"{found['model']} ({found['weights']} weights), policy {found['policy']}, "
        f"{found['threads']} threads, batch {found['batch']}, {found['repeats']} repeats"
    )
    console.print(f"{found['cpu']}, {found['isa']}")
    engines = found["engines"]
    rows: list[tuple[object, ...]] = []
    if isinstance(engines, dict):
        rows += [(name, row["ms"], row["min_ms"], row["max_ms"]) for name, row in engines.items()]
    rows.append(("trusted", found["trusted_ms"], found["trusted_min_ms"], found["trusted_max_ms"]))
    console.print(table(("CPU ms per input", "median", "min", "max"), rows))
    console.print(f"offline {found['offline_ms']:.4g} ms, worker {found['worker_ms']:.4g} ms")
    console.print(f"ratio {found['ratio']:.4g} to {found['baseline_engine']}")
