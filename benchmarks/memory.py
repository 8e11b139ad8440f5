"""Peak memory of the trusted process, step by step, beside what `cloister inspect` states.

    python benchmarks/memory.py [MODEL ...] [--policy slalom] [--batch 1] [--json]

MODEL is a benchmark network (default: vgg16) or a file. Calibration is made here, the trusted
process is a child that reads model and calibration from files and sends its work to a third
process. Peaks are the kernel's (VmHWM).
"""

import argparse
import json
import tempfile
from pathlib import Path

import onnx

from cloister.cli.bench.environment import environment
from cloister.cli.bench.models import load_any
from cloister.cli.bench.peak import measure_peak, random_input
from cloister.graph.onnx.load import load
from cloister.plan.cost import estimate
from cloister.plan.policies import assign
from cloister.plan.quantise import Precision
from cloister.plan.recipe import measure


def measured(model: str, policy: str, batch: int, folder: Path) -> dict[str, object]:
    file, recipe = folder / f"{Path(model).stem}.onnx", folder / "calibration.json"
    onnx.save(load_any(model), file)
    graph = load(file)
    samples = random_input(graph, batch)
    measure(graph, policy=policy, samples=samples, precision=Precision()).save(recipe)
    cost = estimate(graph, assign(graph, policy), batch=batch)
    del graph
    found = measure_peak(file, recipe, batch=batch)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["vgg16"], metavar="MODEL")
    parser.add_argument("--policy", default="slalom")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for model in options.models:
            rows.append(measured(model, options.policy, options.batch, Path(place)))
            if not options.json:
                show(rows[-1])
    if options.json:
        print(json.dumps({"results": rows, **environment()}, indent=2))


def show(row: dict[str, object]) -> None:
    print(f"{row['model']}, policy {row['policy']}, batch {row['batch']}")
    for stage in row["stages"]:
        now, peak = (stage[key] / 2**20 for key in ("resident_bytes", "peak_bytes"))
        print(f"  {stage['step']:20} {now:8.0f} MiB resident, peak {peak:8.0f} MiB")
    stated = row["stated_bytes"] / 2**20
    print(f"  stated {stated:.0f} MiB: {row['stated_over_measured']:.2f} of the measured peak")


if __name__ == "__main__":
    main()
