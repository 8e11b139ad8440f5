"""Measures the splits of a model with a real engine, and adds what a thief gains."""

import hashlib
import importlib
from pathlib import Path

from cloister.errors import InputError
from cloister.graph import graph_file
from cloister.graph.graph import Graph
from cloister.splits.compiled_bench import engine_bench
from cloister.splits.preset_model import SweptModel
from cloister.splits.split_cost import SplitSweep
from cloister.splits.sweep import Gain, Progress, sweep, work
from cloister.trusted.engines.module_engine import EngineKind

DEFAULT_REPEATS, DEFAULT_STARTS = 30, 5


def measure_splits(
    model: SweptModel,
    *,
    engine: EngineKind,
    repeats: int = DEFAULT_REPEATS,
    starts: int = DEFAULT_STARTS,
    theft: Path | None = None,
    progress: Progress = lambda _, __: None,
) -> SplitSweep:
    """Every split of a model; see `sweep`.

    theft   the report of `cloister audit model` for the same model

    Raises   as `sweep`; InputError for a report of another model
    """
    gain = _no_gain if theft is None else _gain(theft, model.graph)
    costs = work(model.graph)
    splits, missing = sweep(
        model.graph,
        model.inputs,
        engine_bench(engine),
        repeats=repeats,
        starts=starts,
        gain=gain,
        progress=progress,
    )
    return SplitSweep(
        model=model.graph.name,
        parameters=costs.total("parameters"),
        flops=costs.total("flops"),
        engine=engine,
        repeats=repeats,
        starts=starts,
        inputs=model.origin,
        weights=model.weights,
        splits=splits,
        missing=missing,
        accuracy=model.accuracy,
    )  # fmt: skip


def digest(graph: Graph) -> str:
    """The model's digest as reports of `cloister audit model` have it."""
    return hashlib.sha256(graph_file.to_bytes(graph)).hexdigest()


def _no_gain(_: int) -> None:
    return None


def _gain(path: Path, graph: Graph) -> Gain:
    try:
        reports = importlib.import_module("cloister.audit.model.theft_report")
    except ModuleNotFoundError as error:
        raise InputError("--theft needs SciPy: pip install 'cloister[audit]'") from error
    report = reports.ModelTheftReport.load(path)
    if report.model_sha256 != digest(graph):
        raise InputError(
            f"--theft {path}: is the report of another model, {report.model!r}; audit this one"
        )
    audited = {one.hidden_layers for one in report.splits}
    return lambda layers: report.gain(layers) if layers in audited else None
