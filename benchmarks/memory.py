"""Peak memory of the trusted process, step by step, beside what `cloister inspect` states.

Calibration is made here; the trusted process is a child that reads model and calibration from
files and sends its work to a third process. Peaks are the kernel's (VmHWM).
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import onnx
import typer

from benchmarks import networks, options
from benchmarks.environment import environment
from benchmarks.peak import measure_peak
from cloister.cli.speed import random_input
from cloister.graph.onnx.load import load
from cloister.plan.cost import estimate
from cloister.plan.policies import assign, make


def measure(
    models: Annotated[list[str], typer.Argument(metavar="[NAME|FILE.onnx]...")] = ["vgg16"],  # noqa: B006
    policy: options.Policy = "slalom",
    batch: options.Batch = 1,
) -> dict[str, object]:
    """Bytes, stated and measured."""
    with TemporaryDirectory() as place:
        rows = [_measure(model, policy, batch, Path(place)) for model in models]
    return {"results": rows, **environment()}


def _measure(model: str, policy: str, batch: int, folder: Path) -> dict[str, object]:
    file, plan = folder / f"{Path(model).stem}.onnx", folder / "model.plan"
    onnx.save(networks.build(model), file)
    graph = load(file)
    samples = random_input(graph, batch)
    make(policy, graph, calibration=samples).save(plan)
    cost = estimate(graph, assign(graph, policy), batch=batch)
    del graph
    found = measure_peak(file, plan, batch=batch)
    stated = cost.trusted_memory_bytes
    return {
        "model": model,
        "policy": policy,
        "batch": batch,
        "stated_bytes": stated,
        "stated": cost.memory.to_dict(),
        **found,
        "stated_over_measured": stated / found["trusted_peak_bytes"],
    }
