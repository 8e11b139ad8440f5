"""`cloister bench inference`: protected inference against plain engines on the same cores.

Everything is measured in one run, interleaved: the fastest of ONNX Runtime and PyTorch float32 is
the baseline, and the ratio is its CPU time per input over that of the trusted process. ONNX
Runtime with 8-bit weights and activations runs along as a second, stricter baseline. The trusted
time is the whole call, from the input array to the released outputs; pads are made before, and
reported as offline time. Every timed run follows an untimed one of the same engine, as requests
follow each other in service: otherwise each would find the caches as another engine left them. The
worker is a process of its own, and so is the one whose peak memory is measured.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import onnx
import typer

from cloister.cli import options
from cloister.cli.bench import models
from cloister.cli.bench.baselines import (
    OrtBaseline,
    OrtInt8Baseline,
    Timing,
    TorchBaseline,
    interleaved,
)
from cloister.cli.bench.environment import environment
from cloister.cli.bench.figure import write_figure
from cloister.cli.bench.peak import measure_peak, random_input
from cloister.cli.bench.prepared import PadsAhead
from cloister.cli.console import emit_json, err, human_bytes, out, table
from cloister.errors import CloisterError, InputError, PlanError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import to_model
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.quantise import Precision
from cloister.plan.recipe import Recipe, measure
from cloister.trusted.report import Report
from cloister.trusted.session import Session

PRIVATE = "cloister"
FLOAT_ENGINES = ("onnxruntime", "torch")
INT8 = "onnxruntime int8"
ALL = "all"


@dataclass(frozen=True)
class Setting:
    """What all measurements of one command share."""

    threads: int
    worker_threads: int
    batch: int
    repeats: int
    int8: bool
    memory: bool


def inference(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME|FILE.onnx", help="Repeatable. Default: vgg16; all: each one."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="|".join((*policies.NAMES, ALL)),
            help="Repeatable. Default: slalom.",
        ),
    ] = None,
    threads: options.Threads = 1,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", min=1, help="Threads of the worker's process.")
    ] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per call.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 5,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Measure 8-bit ONNX Runtime too.")
    ] = True,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure the trusted peak memory too.")
    ] = True,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.svg", help="Draw the ratios.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure trusted time per input against the fastest plain engines."""
    names = _expanded(model or ["vgg16"], models.NAMES)
    wanted = _expanded(policy or ["slalom"], policies.NAMES)
    for unknown in set(wanted) - set(policies.NAMES):
        raise PlanError(f"unknown policy {unknown!r}; choose {', '.join(policies.NAMES)} or {ALL}")
    setting = Setting(threads, worker_threads, batch, repeats, int8, memory)
    found: list[dict[str, object]] = []
    for name in names:
        for row in measure_model(name, wanted, setting):
            found.append(row)
            if not json:
                _show(row)
    if json:
        emit_json(found[0] if len(found) == 1 else {"results": found})
    if figure is not None:
        write_figure(found, figure)


def _expanded(given: Sequence[str], everything: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(one for x in given for one in (everything if x == ALL else [x])))


def open_model(model: str) -> onnx.ModelProto:
    """A model file, or a built network by its name."""
    return models.load_any(Path(model)) if model.endswith(".onnx") else models.build(model)


def measure_model(
    name: str, wanted: Sequence[str], setting: Setting
) -> Iterator[dict[str, object]]:
    """One result per policy; the engines are made once and timed anew beside each."""
    proto = open_model(name)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(proto, file)
        graph = load(file)
        feeds = random_input(graph, setting.batch)
        engines = dict(baselines(proto, graph, feeds, setting.threads))
        if setting.int8:
            engines |= int8_baseline(proto, feeds, setting.threads)
        for policy in wanted:
            recipe = measure(graph, policy=policy, samples=feeds, precision=Precision())
            yield {
                "model": name,
                "weights": "file" if Path(name).suffix == ".onnx" else "random, seeded",
                "policy": policy,
                "threads": setting.threads,
                "worker_threads": setting.worker_threads,
                "batch": setting.batch,
                "repeats": setting.repeats,
                **_timed(recipe.plan(graph), engines, feeds, setting),
                **(_memory(file, recipe, setting) if setting.memory else {}),
                **environment(),
            }


def _timed(
    plan: Plan,
    engines: Mapping[str, Callable[[], object]],
    feeds: np.ndarray,
    setting: Setting,
) -> dict[str, object]:
    reports: list[Report] = []
    pads = PadsAhead(plan) if plan.hidden_nodes else None
    with Session(
        plan,
        threads=setting.threads,
        worker_threads=setting.worker_threads,
        batch=setting.batch,
        pads=pads,
    ) as session:

        def private_before() -> None:
            if pads is not None:
                pads.fill(2 * len(feeds))
            session.run(feeds)

        runs: dict[str, Callable[[], object]] = {
            **engines,
            PRIVATE: lambda: reports.append(session.run(feeds).report),
        }
        before = {**engines, PRIVATE: private_before}
        for run in before.values():  # warm-up
            run()
        timings = interleaved(runs, repeats=setting.repeats, before=before)
    offline_ms = statistics.median(pads.made_ms) if pads is not None else 0.0
    return {
        **_times(timings, reports),
        "offline_ms": offline_ms,
        "soundness_bits": reports[-1].soundness_bits,
    }


def _memory(file: Path, recipe: Recipe, setting: Setting) -> dict[str, object]:
    """Peak memory of a fresh trusted process that reads model and calibration from files."""
    calibration = file.with_name("calibration.json")
    recipe.save(calibration)
    peak = measure_peak(file, calibration, batch=setting.batch, threads=setting.threads)
    return {key: peak[key] for key in ("trusted_peak_bytes", "serving_peak_bytes")}


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


def int8_baseline(
    proto: onnx.ModelProto, feeds: np.ndarray, threads: int
) -> dict[str, Callable[[], object]]:
    """ONNX Runtime in 8 bits, calibrated on the inputs; nothing where it cannot take the model."""
    try:
        engine = OrtInt8Baseline(proto, threads, samples=feeds)
    except InputError as error:
        err().print(f"8-bit ONNX Runtime is not measured: {error}", style="yellow")
        return {}
    return {INT8: lambda: engine.run(feeds)}


def _times(timings: Mapping[str, Timing], reports: Sequence[Report]) -> dict[str, object]:
    """Medians per input; ratios compare CPU time with CPU time."""
    inputs = reports[0].inputs
    private = timings[PRIVATE]
    trusted = [1e3 * cpu / inputs for cpu in private.cpus_s]
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
    fastest = min((e for e in FLOAT_ENGINES if e in engines), key=lambda e: engines[e]["ms"])
    trusted_ms = statistics.median(trusted)
    int8_ms = engines[INT8]["ms"] if INT8 in engines else None
    return {
        "baseline_engine": fastest,
        "baseline_ms": engines[fastest]["ms"],
        "int8_ms": int8_ms,
        "engines": engines,
        "trusted_ms": trusted_ms,
        "trusted_min_ms": min(trusted),
        "trusted_max_ms": max(trusted),
        "ratio": engines[fastest]["ms"] / trusted_ms,
        "int8_ratio": None if int8_ms is None else int8_ms / trusted_ms,
        "worker_ms": statistics.median(report.worker_ms / inputs for report in reports),
        "private_wall_ms": 1e3 * private.wall_s / inputs,
    }


def _show(found: Mapping[str, object]) -> None:
    console = out()
    console.print(
        f"{found['model']} ({found['weights']} weights), policy {found['policy']}, "
        f"{found['threads']} threads, batch {found['batch']}, {found['repeats']} repeats"
    )
    console.print(f"{found['cpu']}, {found['isa']}, GPU {found['gpu']}")
    engines = found["engines"]
    rows: list[tuple[object, ...]] = []
    if isinstance(engines, dict):
        rows += [(name, row["ms"], row["min_ms"], row["max_ms"]) for name, row in engines.items()]
    rows.append(("trusted", found["trusted_ms"], found["trusted_min_ms"], found["trusted_max_ms"]))
    console.print(table(("CPU ms per input", "median", "min", "max"), rows))
    console.print(f"offline {found['offline_ms']:.4g} ms, worker {found['worker_ms']:.4g} ms")
    peak = found.get("trusted_peak_bytes")
    if isinstance(peak, int):
        console.print(f"peak memory of the trusted process {human_bytes(peak)}")
    console.print(f"ratio {found['ratio']:.4g} to {found['baseline_engine']}")
    if found["int8_ratio"] is not None:
        console.print(f"ratio {found['int8_ratio']:.4g} to {INT8}, less exact and unprotected")
    console.print()
