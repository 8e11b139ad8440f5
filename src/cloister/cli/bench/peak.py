"""Peak memory of the trusted process, measured in a process of its own.

    python -m cloister.cli.bench.peak MODEL.onnx calibration.json [--batch N] [--threads N]

The process does what a trusted runtime does and nothing else: it reads the model and a
calibration that was made elsewhere, plans, lets go of the float weights it sent out, opens a
session with a worker in another process and pads made inline, and answers two requests. Whoever
measures (baselines, quantisers, the model in float32) is not in it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import CloisterError, InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.load import load
from cloister.plan.recipe import Recipe
from cloister.trusted.session import Session
from cloister.wire.process import python, run

INPUT_SEED = 1
REQUESTS = 2
CHILD_TIMEOUT_S = 600.0
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def measure_peak(
    model: Path, recipe: Path, *, batch: int = 1, threads: int = 1
) -> dict[str, object]:
    """Run this module as a child and return what it found, in bytes.

    trusted_peak_bytes   the largest resident memory of its whole life, loading included
    serving_peak_bytes   the same while it answered requests
    stages               resident memory after each step, and the peak until then

    Raises   CloisterError with the child's own message
    """
    command = python(
        "-m", "cloister.cli.bench.peak", str(model.resolve()), str(recipe.resolve()),
        "--batch", str(batch), "--threads", str(threads),
    )  # fmt: skip
    ran = run(command, timeout_s=CHILD_TIMEOUT_S)
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines()
        raise CloisterError(f"measuring memory: {lines[-1] if lines else 'the process died'}")
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def random_input(graph: Graph, batch: int) -> np.ndarray:
    """Inputs uniform in [0, 1), the same in every run: times do not depend on values."""
    if len(graph.inputs) != 1:
        raise InputError("the benchmark measures models with one input")
    known = graph.types[graph.inputs[0]]
    shape = tuple(batch if size is None else size for size in known.shape)
    data = InsecureSeededRandom(INPUT_SEED).random_bytes(int(np.prod(shape)))
    return (np.frombuffer(data, np.uint8).reshape(shape) / np.float32(256)).astype(known.dtype)


class Stages:
    """Resident memory of this process, step by step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        self.peak_bytes = 0

    def note(self, step: str) -> None:
        """Write down where memory stands after a step."""
        now, peak = _status("VmRSS"), _status("VmHWM")
        self.peak_bytes = max(self.peak_bytes, peak)
        self.rows.append({"step": step, "resident_bytes": now, "peak_bytes": peak})


def reset_peak() -> None:
    """Let the kernel count the peak anew, where it can."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return


def _status(key: str) -> int:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    raise InputError(f"{STATUS} has no {key}: memory is measured on Linux only")


def _measure(options: argparse.Namespace) -> dict[str, object]:
    stages = Stages()
    stages.note("modules imported")
    graph = load(options.model)
    stages.note("model read")
    feeds = random_input(graph, options.batch)
    recipe = Recipe.load(options.recipe)
    plan = recipe.plan(graph).without_float_weights()
    stages.note("planned")
    del graph
    with Session(plan, threads=options.threads, batch=options.batch) as session:
        del plan
        stages.note("session opened")
        reset_peak()
        for _ in range(REQUESTS):
            session.run(feeds)
        stages.note("requests answered")
    return {
        "trusted_peak_bytes": stages.peak_bytes,
        "serving_peak_bytes": stages.rows[-1]["peak_bytes"],
        "stages": stages.rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The child."""
    parser = argparse.ArgumentParser(prog="python -m cloister.cli.bench.peak")
    parser.add_argument("model", type=Path)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    try:
        found = _measure(parser.parse_args(arguments))
    except CloisterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
