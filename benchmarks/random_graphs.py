"""Random models with bodies, free sizes and operators of every kind: all policies, ONNX Runtime.

Faults are foreign errors, differences, and refusals of policies that run everything. A model with a
fault is kept, with its inputs, calibration and options.
"""

import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks import ROOT
from cloister.cli.console import err, progress

sys.path.append(str(ROOT / "tests"))

from conformance.random_checks import Outcome, outcomes


def measure(
    examples: Annotated[int, typer.Option("--examples", min=1)] = 2_000,
    start: Annotated[int, typer.Option("--seed")] = 2,
    keep: Annotated[Path, typer.Option("--keep", metavar="FOLDER")] = Path("build/random_graphs"),
) -> dict[str, object]:
    """How many models each policy computed or refused, and one line on each fault."""
    warnings.simplefilter("ignore")
    operators: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    faults: list[str] = []
    models = 0

    def enter(found: Outcome) -> None:
        operators.update({node.op_type for node in found.net.model.graph.node})
        computed.update(found.compared)
        refused.update(f"{policy}: {text}" for policy, text in found.refused.items())
        for policy, text in {**found.faults, **found.broken}.items():
            keep.mkdir(parents=True, exist_ok=True)
            path = keep / f"{len(faults) + 1}.onnx"
            onnx.save(found.net.model, path)
            given = {f"calibration {name}": array for name, array in found.calibration.items()}
            np.savez(path.with_suffix(".npz"), **found.feeds, **given, **found.options)
            faults.append(f"{policy}: {text}; {path}")
            err().print(faults[-1])

    with tempfile.TemporaryDirectory() as folder, progress("random graphs") as update:

        @seed(start)
        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.data())
        def run(data: st.DataObject) -> None:
            nonlocal models
            found = data.draw(outcomes(Path(folder)))
            if found is not None:
                models += 1
                enter(found)
                update(models, examples)

        run()
    return {
        "models": models,
        "operators": len(operators),
        "computed": dict(sorted(computed.items())),
        "refused": dict(refused.most_common()),
        "faults": faults,
    }


def faults(found: dict[str, object]) -> int:
    """Models that a policy did not compute as ONNX Runtime does."""
    return len(found["faults"])
