"""`cloister bench inference`: protected inference against plain float32 on the same core.

Everything is measured in one run, interleaved: the fastest of ONNX Runtime and PyTorch float32 is
the baseline, and the ratio is its CPU time per input over that of the trusted process. The trusted
time is the whole call, from the input array to the released outputs, less the time spent making
pads, which is reported as offline time; the worker is a process of its own.
"""

import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer

from cloister import _native
from cloister.cli import options
from cloister.cli.bench import models
from cloister.cli.bench.baselines import OrtBaseline, TorchBaseline, interleaved
from cloister.cli.console import emit_json, err, out, table
from cloister.crypto.csprng import InsecureSeededRandom
from cloister.errors import CloisterError, InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx_import import from_model
from cloister.graph.passes import prepare
from cloister.plan import policies
from cloister.trusted.report import Report
from cloister.trusted.session import Session

PACKAGES = ("cloister", "numpy", "onnxruntime", "torch")
INPUT_SEED = 1


@dataclass
class _Private:
    """A session under the stopwatch."""

    session: Session
    feeds: np.ndarray
    trusted_ms: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def run(self) -> list[np.ndarray]:
        started = time.process_time()
        result = self.session.run(self.feeds)
        spent = 1e3 * (time.process_time() - started)
        self.trusted_ms.append((spent - result.report.offline_ms) / len(self.feeds))
        self.reports.append(result.report)
        return list(result.outputs.values())

    def forget(self) -> None:
        """Drop the warm-up's measurements."""
        self.trusted_ms.clear()
        self.reports.clear()


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
    proto = _open(model)
    graph = prepare(from_model(proto, name=model))
    feeds = _random_input(graph, batch)
    plan = policies.make(policy or "slalom", graph, calibration=feeds)
    with Session(plan, threads=threads, worker_threads=worker_threads, batch=batch) as session:
        private = _Private(session, feeds)
        engines = _baselines(proto, threads)
        private.run()
        for engine in engines.values():
            engine.run(feeds)
        private.forget()
        runs = {name: lambda engine=engine: engine.run(feeds) for name, engine in engines.items()}
        timings = interleaved({**runs, "cloister": private.run}, repeats=repeats)
    found = {
        "model": model,
        "weights": "file" if Path(model).suffix == ".onnx" else "random, seeded",
        "policy": plan.policy,
        "threads": threads,
        "worker_threads": worker_threads,
        "batch": batch,
        "repeats": repeats,
        **_times(private, {name: timings[name] for name in engines}, batch),
        "soundness_bits": private.reports[-1].soundness_bits,
        "cpu": _cpu(),
        "isa": _native.isa(),
        "versions": _versions(),
    }
    if json:
        emit_json(found)
    else:
        _show(found)


def _open(model: str) -> onnx.ModelProto:
    return models.load_any(Path(model)) if model.endswith(".onnx") else models.build(model)


def _random_input(graph: Graph, batch: int) -> np.ndarray:
    """Inputs uniform in [0, 1), the same in every run: times do not depend on values."""
    if len(graph.inputs) != 1:
        raise InputError("the benchmark measures models with one input")
    known = graph.types[graph.inputs[0]]
    shape = tuple(batch if size is None else size for size in known.shape)
    data = InsecureSeededRandom(INPUT_SEED).random_bytes(int(np.prod(shape)))
    return (np.frombuffer(data, np.uint8).reshape(shape) / np.float32(256)).astype(known.dtype)


def _baselines(proto: onnx.ModelProto, threads: int) -> dict[str, OrtBaseline | TorchBaseline]:
    """The float32 engines that are installed and take this model."""
    engines: dict[str, OrtBaseline | TorchBaseline] = {"onnxruntime": OrtBaseline(proto, threads)}
    try:
        engines["torch"] = TorchBaseline(proto, threads)
    except CloisterError as error:
        err().print(f"PyTorch is not measured: {error}", style="yellow")
    return engines


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
