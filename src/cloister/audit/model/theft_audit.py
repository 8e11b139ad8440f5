"""The audit of a model: every split and query budget, by every attack here, resumable."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from cloister.audit.job_results import Update, begin_in_time
from cloister.audit.model.interval import Interval
from cloister.audit.model.surrogate import secret
from cloister.audit.model.theft_data import TheftData
from cloister.audit.model.theft_page import theft_page
from cloister.audit.model.theft_progress import TheftJob, TheftProgress
from cloister.audit.model.theft_report import BlackBox, ModelTheftReport, SplitTheft, Theft
from cloister.audit.model.theft_settings import TheftSettings
from cloister.audit.model.thief import Thief
from cloister.audit.model.victim import victim
from cloister.base import files
from cloister.errors import InputError
from cloister.graph import graph_file
from cloister.graph.graph import Graph

PAGE = "report.html"


def audit_model(
    graph: Graph,
    data: TheftData,
    *,
    folder: Path,
    settings: TheftSettings | None = None,
    minutes: float | None = None,
    threads: int = 1,
    update: Update = lambda done, total: None,
) -> ModelTheftReport:
    """Attack every split of a model, and write report.json and report.html.

    folder    keeps every theft that was made: the same call, or one for more splits, budgets or
              seeds, goes on with them
    update    is called with how many thefts of how many are done
    minutes   after which no theft is begun; the report then has fewer seeds

    Raises    InputError, UnsupportedError
    """
    settings = settings or TheftSettings()
    torch.set_num_threads(threads)
    thief = Thief(victim(graph, threads=threads), data, settings)
    model_sha256 = hashlib.sha256(graph_file.to_bytes(graph)).hexdigest()
    progress = TheftProgress(folder, _identity(model_sha256, data, settings))
    jobs = list(_jobs(thief.victim.layers, settings))
    for job in begin_in_time(jobs, minutes=minutes, update=update):
        if job not in progress.done:
            progress.add(job, thief.steal(job))
    report = _report(graph, model_sha256, data, settings, thief, progress, jobs)
    report.save(folder)
    files.replace(folder / PAGE, theft_page(report).encode(), private=False)
    return report


def _identity(model_sha256: str, data: TheftData, settings: TheftSettings) -> str:
    """What one theft depends on; more splits, budgets or seeds are added to those that are done."""
    chosen = {k: v for k, v in asdict(settings).items() if k not in ("splits", "queries", "seeds")}
    parts = (model_sha256, data.sha256, json.dumps(chosen))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _splits(layers: int, settings: TheftSettings) -> tuple[int, ...]:
    return settings.splits or tuple(range(1, layers + 1))


def _jobs(layers: int, settings: TheftSettings) -> Iterator[TheftJob]:
    """Seed by seed, so that an audit that is cut short has all splits with fewer seeds.

    All layers hidden is a black box of the same architecture, so it is always among them.
    """
    for seed in range(settings.seeds):
        for hidden in sorted({0, *_splits(layers, settings), layers}):
            yield from (TheftJob(hidden, queries, seed) for queries in settings.queries)


def _report(
    graph: Graph,
    model_sha256: str,
    data: TheftData,
    settings: TheftSettings,
    thief: Thief,
    progress: TheftProgress,
    jobs: Sequence[TheftJob],
) -> ModelTheftReport:
    undone = {job.seed for job in jobs if job not in progress.done}
    seeds = min(undone, default=settings.seeds)
    if seeds == 0:
        raise InputError(
            "the time for the audit was used up before each theft was made once; what was made "
            f"is kept in {progress.path}: run the same command again"
        )
    whole = thief.victim
    right = thief.true.argmax(axis=1) == data.evaluated.y

    def thefts(hidden: int, attack: str | None = None) -> tuple[Theft, ...]:
        return tuple(_theft(progress, hidden, q, seeds, attack) for q in settings.queries)

    return ModelTheftReport(
        model=graph.name,
        model_sha256=model_sha256,
        data_sha256=data.sha256,
        versions={name: version(name) for name in ("cloister", "torch", "onnxruntime")},
        settings=settings,
        layers=whole.layers,
        parameters=_weights(whole.graph, frozenset()),
        classes=whole.classes,
        thief_samples=len(data.thief),
        own=data.own,
        evaluated=len(data.evaluated.y),
        seeds_done=seeds,
        victim_accuracy=float(right.mean()),
        black_boxes=(
            BlackBox("the same architecture", thefts(whole.layers, "trained")),
            BlackBox("a linear classifier", thefts(whole.layers, "linear probe")),
            BlackBox("a small architecture", thefts(0, "trained")),
        ),
        splits=tuple(
            _split(thief, hidden, thefts(hidden)) for hidden in _splits(whole.layers, settings)
        ),
        membership=tuple(thief.infer()),
    )


def _theft(
    progress: TheftProgress, hidden: int, queries: int, seeds: int, attack: str | None
) -> Theft:
    """The thefts by one attack, or by the one that was best in the mean."""
    runs = [progress.done[TheftJob(hidden, queries, seed)] for seed in range(seeds)]
    made = []
    for name in dict.fromkeys(one.attack for run in runs for one in run):
        found = [one for run in runs for one in run if one.attack == name]
        if name not in (attack or name, "none") or len(found) < seeds:
            continue
        inferred = [one.membership for one in found if one.membership is not None]
        made.append(
            Theft(
                queries,
                name,
                Interval.of([one.accuracy for one in found]),
                Interval.of([one.fidelity for one in found]),
                Interval.of(inferred) if inferred else None,
            )
        )
    return max(made, key=lambda theft: theft.accuracy.mean)


def _split(thief: Thief, hidden: int, thefts: tuple[Theft, ...]) -> SplitTheft:
    part = thief.part(hidden)
    return SplitTheft(
        hidden,
        part.hidden.nodes[0].name,
        _weights(part.hidden, part.known),
        thefts,
        thief.recover(hidden),
    )


def _weights(graph: Graph, known: frozenset[str]) -> int:
    return sum(graph.constants[name].size for name in secret(graph, known))
