"""`cloister inspect`: what a plan would do to a model, and what it costs, before running it."""

from typing import Annotated

import typer
from rich.console import Console

from cloister.cli import options
from cloister.cli.console import emit_json, human_bytes, out, table
from cloister.cli.planning import DEFAULT_POLICY
from cloister.graph.graph import Graph
from cloister.graph.legality import unsupported
from cloister.graph.sources import load
from cloister.plan.claims import Claims, claims_of
from cloister.plan.cost import PlanCost, estimate
from cloister.plan.memory import MemoryCost
from cloister.plan.policies import assign

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
    json: options.Json = False,
) -> None:
    """List every node with its protection and costs, the totals and the claims."""
    graph = load(model)
    policy = policy or DEFAULT_POLICY
    protections = assign(graph, policy)
    problems = unsupported(graph)
    cost = estimate(graph, protections, batch=batch)
    claims = claims_of(policy, protections)
    if json:
        emit_json(_document(graph, policy, cost, claims, problems))
    else:
        _show(graph, cost, claims, problems)
    if problems:
        raise typer.Exit(2)


def _document(
    graph: Graph,
    policy: str,
    cost: PlanCost,
    claims: Claims,
    problems: list[tuple[str, str, str]],
) -> dict[str, object]:
    return {
        "model": graph.name,
        "policy": policy,
        "inputs": {
            name: [str(graph.types[name].dtype), graph.types[name].shape] for name in graph.inputs
        },
        "outputs": list(graph.outputs),
        **cost.to_dict(),
        "claims": claims.to_dict(),
        "unsupported": [
            {"node": node, "reason": reason, "remedy": remedy} for node, reason, remedy in problems
        ],
    }


def _show(
    graph: Graph, cost: PlanCost, claims: Claims, problems: list[tuple[str, str, str]]
) -> None:
    console = out()
    rows = [tuple(getattr(node, column) for column in COLUMNS) for node in cost.nodes]
    total = ("total", "", "", "", "", *(cost.total(column) for column in SUMS))
    headings = tuple(column.replace("_", " ") for column in COLUMNS)
    console.print(table(headings, [*rows, total], title=f"{graph.name}, for one input"))
    console.print()
    _show_memory(console, cost.memory)
    console.print()
    console.print(str(claims))
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
