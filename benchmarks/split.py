"""Trusted time per input with a split, against `slalom` and the fastest plain engine, by turns.

Each row has one model, batch size, split and integrity, and is measured in one run: the engines in
float32, a session that blinds every layer, and one that stops at the split. `cloister.cli.speed`
says what is timed.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import typer

from benchmarks import networks, options
from benchmarks.engines import float_engines
from benchmarks.environment import environment
from cloister.cli.console import err
from cloister.cli.speed import Engines, Images, TimedSession, by_turns, fastest_of, random_input
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import INTEGRITY
from cloister.trusted.program.epilogue import POOLS

ALL = "all"
SLALOM, ORIGAMI = "slalom", "origami"


def measure(
    model: Annotated[
        list[str], typer.Option("--model", metavar="NAME|FILE.onnx", help="Repeatable.")
    ] = ["vgg16"],  # noqa: B006
    until: Annotated[
        list[str],
        typer.Option(metavar="poolN|NODE", help="After which pooling layer or node; repeatable."),
    ] = ["pool3"],  # noqa: B006
    integrity: Annotated[
        list[str], typer.Option(metavar="|".join((*INTEGRITY, ALL)), help="Repeatable.")
    ] = ["full"],  # noqa: B006
    batch: Annotated[list[int], typer.Option(min=1, help="Inputs per call; repeatable.")] = [1],  # noqa: B006
    threads: options.Threads = 1,
    worker_threads: options.WorkerThreads = 1,
    repeats: options.Repeats = 5,
) -> dict[str, object]:
    """One result, or several, for each model, batch size, split and integrity."""
    setting = {"threads": threads, "worker_threads": worker_threads, "repeats": repeats}
    modes = tuple(INTEGRITY) if ALL in integrity else tuple(integrity)
    for mode in modes:
        if mode not in INTEGRITY:
            raise InputError(f"--integrity {mode!r}: choose {', '.join((*INTEGRITY, ALL))}")
    rows = [row for name in model for row in _measure(name, until, modes, batch, setting)]
    found = rows[0] if len(rows) == 1 else {"results": rows}
    return {**found, **setting, **environment()}


def _measure(
    name: str,
    until: Sequence[str],
    modes: Sequence[str],
    batches: Sequence[int],
    setting: Mapping[str, int],
) -> Iterator[dict[str, object]]:
    """The rows of a model; for each batch size engines and the `slalom` session are made once."""
    proto = networks.build(name)
    graph = prepare(from_model(proto, name=name))
    splits = {split: PlannedSplit((node_named(graph, split),)) for split in until}
    sessions = {key: setting[key] for key in ("threads", "worker_threads")}
    for batch in batches:
        feeds = random_input(graph, batch)
        engines = float_engines(proto, graph, feeds, setting["threads"])
        ranges = policies.measure_ranges(SLALOM, graph, calibration=feeds)
        whole = policies.from_ranges(SLALOM, graph, ranges=ranges)
        with TimedSession(whole, feeds, **sessions) as slalom:
            for split, planned in splits.items():
                for mode in modes:
                    err().print(f"{name} {split} {mode}, batch {batch} ...")
                    plan = policies.from_ranges(
                        INTEGRITY[mode], graph, ranges=ranges, split=planned
                    )
                    with TimedSession(plan, feeds, **sessions) as origami:
                        times = _times(engines, slalom, origami, feeds, setting["repeats"])
                    yield {
                        "model": name,
                        "until": split,
                        "node": planned.until[0],
                        "integrity": mode,
                        "batch": batch,
                        **times,
                    }


def _times(
    engines: Engines, slalom: TimedSession, origami: TimedSession, feeds: Images, repeats: int
) -> dict[str, object]:
    sessions = {SLALOM: slalom, ORIGAMI: origami}
    found = by_turns(engines, sessions, len(feeds), repeats=repeats)
    fastest = fastest_of(engines, found)
    measured = {"baseline": found[fastest], SLALOM: found[SLALOM], ORIGAMI: found[ORIGAMI]}
    reports = origami.reports[-repeats:]
    return {
        "baseline_engine": fastest,
        **{
            f"{name}_{key}": row[key]
            for name, row in measured.items()
            for key in ("ms", "min_ms", "max_ms")
        },
        "ratio": found[fastest]["ms"] / found[ORIGAMI]["ms"],
        "gain": found[SLALOM]["ms"] / found[ORIGAMI]["ms"],
        "worker_ms": statistics.median(one.worker_ms / one.inputs for one in reports),
        "soundness_bits": reports[-1].soundness_bits,
    }


def node_named(graph: Graph, name: str) -> str:
    """The node that `--until` means: poolN is the N-th pooling layer, and other names are nodes'.

    Raises   InputError for a pooling layer that the model does not have
    """
    pools = [node.name for node in graph.nodes if node.op in POOLS]
    named = {f"pool{i}": pool for i, pool in enumerate(pools, start=1)}
    if name.removeprefix("pool").isdecimal() and name not in named:
        raise InputError(f"--until {name}: the model has {len(pools)} pooling layers")
    return named.get(name, name)
