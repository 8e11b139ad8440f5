"""`cloister inspect`: what a plan would do to a model, and what it costs, before running it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console

from cloister.base.rng import SystemRandom
from cloister.cli import options
from cloister.cli.console import emit_json, human_bytes, out, table
from cloister.cli.planning import DEFAULT_POLICY
from cloister.graph.batch import element_type
from cloister.graph.graph import Graph
from cloister.graph.legality import unsupported
from cloister.graph.onnx.load import load
from cloister.plan.claims import Claims, claims_of
from cloister.plan.cost import PlanCost, estimate
from cloister.plan.memory import MemoryCost
from cloister.plan.placement import Placement, default_costs, placements
from cloister.plan.placement import measure as measure_costs
from cloister.plan.policies import assign
from cloister.plan.protection import OUTSOURCED, Protection

COLUMNS = (
    "node", "op", "kind", "protection", "output", "parameters", "flops",
    "bytes_to_worker", "bytes_from_worker", "pad_bytes",
)  # fmt: skip
SUMS = COLUMNS[5:]


def inspect(
    model: options.ModelFile,
    policy: options.PolicyName = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Inputs per message, for the memory.")
    ] = 1,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure depthwise layers' costs on this machine.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List every node with its protection and costs, the totals and the claims."""
    graph = load(model)
    policy = policy or DEFAULT_POLICY
    protections = assign(graph, policy)
    problems = unsupported(graph)
    cost = estimate(graph, protections, batch=batch)
    claims = claims_of(policy, protections)
    placed = _placements(graph, policy, protections, measure=measure)
    if json:
        emit_json(_document(graph, policy, cost, claims, problems, placed))
    else:
        _show(graph, cost, claims, problems, placed)
    if problems:
        raise typer.Exit(2)


def _placements(
    graph: Graph, policy: str, protections: Mapping[str, Protection], *, measure: bool
) -> tuple[Placement, ...]:
    """Depthwise layers of policies that have a choice."""
    outside = OUTSOURCED.get(policy)
    if outside is None:
        return ()
    costs = measure_costs(outside, rng=SystemRandom()) if measure else default_costs(outside)
    return placements(graph, protections, costs)


def _document(
    graph: Graph,
    policy: str,
    cost: PlanCost,
    claims: Claims,
    problems: list[tuple[str, str, str]],
    placed: tuple[Placement, ...],
) -> dict[str, object]:
    return {
        "model": graph.name,
        "policy": policy,
        "inputs": {
            name: [str(element_type(graph, name)), graph.sizes(name)] for name in graph.inputs
        },
        "outputs": list(graph.outputs),
        **cost.to_dict(),
        "claims": claims.to_dict(),
        "depthwise": [asdict(placement) for placement in placed],
        "unsupported": [
            {"node": node, "reason": reason, "remedy": remedy} for node, reason, remedy in problems
        ],
    }


def _show(
    graph: Graph,
    cost: PlanCost,
    claims: Claims,
    problems: list[tuple[str, str, str]],
    placed: tuple[Placement, ...],
) -> None:
    console = out()
    rows = [tuple(getattr(node, column) for column in COLUMNS) for node in cost.nodes]
    total = ("total", "", "", "", "", *(cost.total(column) for column in SUMS))
    headings = tuple(column.replace("_", " ") for column in COLUMNS)
    console.print(table(headings, [*rows, total], title=f"{graph.name}, for one input"))
    console.print()
    if placed:
        rows = [
            (p.node, "inside" if p.inside else "worker", p.inside_us, p.outside_us) for p in placed
        ]
        headings = ("depthwise layer", "runs", "trusted us inside", "trusted us if on the worker")
        console.print(table(headings, rows))
        console.print()
    _show_memory(console, cost.memory)
    console.print()
    console.print(str(claims), soft_wrap=True)
    if problems:
        console.print()
        console.print("this model cannot be run:")
        console.print(table(("node", "reason", "remedy"), problems))


def _show_memory(console: Console, memory: MemoryCost) -> None:
    """The phase that needs most, item by item, and the sums of the others."""
    peak = memory.peak_phase
    items = sorted(memory.phases[peak].items(), key=lambda item: -item[1])
    rows = [(name, human_bytes(nbytes)) for name, nbytes in items if nbytes]
    console.print(
        f"trusted memory, estimated: {human_bytes(memory.peak_bytes)}, while {peak} "
        "(pads made inline, calibration made beforehand)"
    )
    console.print(table(("item", "bytes"), rows))
    for phase, needed in memory.phases.items():
        if phase != peak:
            console.print(f"while {phase}: {human_bytes(sum(needed.values()))}")
