"""The planner's predicted trusted time beside the measured one, plan by plan.

Each round measures the model's costs anew on stand-ins without weights, as `cloister plan` does,
and then runs the real plans as `cloister.cli.speed` times them. A change of clock speed or a
neighbour's load so meets predictions and measurements alike; both are medians over the rounds.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import Annotated

import numpy as np
import typer

from benchmarks import networks, options
from benchmarks.environment import environment
from cloister.cli.console import err
from cloister.cli.speed import measure_session, random_input
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import OUTSOURCED, SPLITTING, Protection
from cloister.planner.calibration import calibrate
from cloister.planner.cost_table import CostTable
from cloister.planner.goals import Goals, InputHiding
from cloister.planner.plan_search import PlanSearch
from cloister.trusted.program.compile import compile_plan

BAR = 0.15
CHOSEN = "slalom, placed by the planner"
GOALS = Goals(InputHiding.PROVEN, "full")
NOTHING = {"nothing": lambda: None}
"""No engine runs beside the sessions."""


def measure(
    model: options.Model = "vgg16",
    batch: options.Batch = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Both measured anew.")] = 3,
    repeats: options.Repeats = 5,
    until: Annotated[
        str, typer.Option("--until", metavar="NODE", help="Default: a third of all splits.")
    ] = "",
    bar: Annotated[float, typer.Option("--bar", help="The error that is a fault.")] = BAR,
) -> dict[str, object]:
    """Milliseconds for one input, and by how much the prediction is off."""
    graph = prepare(from_model(networks.build(model), name=model))
    feeds = random_input(graph, batch)
    splits = [PlannedSplit(split.until) for split in split_points(graph)]
    split = _split(splits, until)
    whole = _all_outside(graph, feeds)
    found: dict[str, list[tuple[float, ...]]] = {}
    for number in range(rounds):
        err().print(f"round {number + 1} of {rounds} ...")
        table = calibrate(
            graph, tuple(OUTSOURCED.values()), splits=splits, segments=True, batch=batch,
            repeats=repeats,
        )  # fmt: skip
        for name, plan in _plans(whole, table, split, batch):
            cost = table.predict(compile_plan(plan))
            times = measure_session(plan, NOTHING, feeds, repeats=repeats)
            found.setdefault(name, []).append(
                (cost.trusted_ms, times["trusted_ms"], cost.worker_ms, times["worker_ms"])
            )
    rows = [_row(name, pairs) for name, pairs in found.items()]
    return {
        "model": model,
        "batch": batch,
        "rounds": rounds,
        "repeats": repeats,
        "until": ",".join(split.until),
        "plans": rows,
        "worst_error": max(abs(row["error"]) for row in rows),
        "bar": bar,
        **environment(),
    }


def faults(found: Mapping[str, object]) -> int:
    """Plans whose prediction is further off than the bar."""
    return sum(abs(row["error"]) > found["bar"] for row in found["plans"])


def _row(name: str, rounds: list[tuple[float, ...]]) -> dict[str, object]:
    predicted, measured, *waits = (statistics.median(ms) for ms in zip(*rounds, strict=True))
    return {
        "plan": name,
        "predicted_ms": predicted,
        "measured_ms": measured,
        "error": predicted / measured - 1,
        "worst_round": max((p / m - 1 for p, m, *_ in rounds), key=abs),
        "predicted_worker_ms": waits[0],
        "measured_worker_ms": waits[1],
    }


def _split(splits: list[PlannedSplit], until: str) -> PlannedSplit:
    if not splits:
        raise InputError("the model has no place to split it")
    if not until:
        return splits[len(splits) // 3]
    for split in splits:
        if ",".join(split.until) == until:
            return split
    known = ", ".join(",".join(split.until) for split in splits)
    raise InputError(f"--until {until}: choose one of {known}")


def _all_outside(graph: Graph, feeds: np.ndarray) -> Plan:
    """A plan that has the integers of every linear node; all other plans share them."""
    ranges = policies.measure_ranges("slalom", graph, calibration=feeds, inside=())
    return policies.from_ranges("slalom", graph, ranges=ranges, inside=())


def _plans(
    whole: Plan, table: CostTable, split: PlannedSplit, batch: int
) -> Iterator[tuple[str, Plan]]:
    """Every policy's plan, and the one that the planner would choose."""
    graph = whole.graph
    for policy in (*OUTSOURCED, "enclave"):
        yield policy, _real(whole, policy, policies.assign(graph, policy))
    for policy in SPLITTING:
        given = policies.assign(graph, policy, split=split)
        yield policy, _real(whole, policy, given, split)
    search = PlanSearch(graph, GOALS, table.predict, table.floats.mac_ms, batch=batch)
    best = min(
        (one for one in search.plans() if one.policy == "slalom"),
        key=lambda one: one.cost.trusted_ms,
    )
    yield CHOSEN, _real(whole, "slalom", best.protections)


def _real(
    whole: Plan,
    policy: str,
    given: Mapping[str, Protection],
    split: PlannedSplit | None = None,
) -> Plan:
    sent = [name for name, protection in given.items() if protection.on_integers]
    return Plan(
        whole.graph,
        policy,
        given,
        {name: whole.quantised[name] for name in sent},
        precision=whole.precision,
        ranges={name: whole.ranges[name] for name in sent},
        split=split,
    )
