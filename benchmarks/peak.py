"""Peak memory of the trusted process, measured in a process of its own.

    python -m benchmarks.peak MODEL.onnx FILE.plan [--batch N] [--threads N]

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

from benchmarks import python
from cloister.cli.speed import random_input
from cloister.errors import CloisterError, InputError
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.trusted.session import Session
from cloister.wire.process import run

REQUESTS = 2
CHILD_TIMEOUT_S = 600.0
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def measure_peak(model: Path, plan: Path, *, batch: int = 1, threads: int = 1) -> dict[str, object]:
    """Run this module as a child and return what it found, in bytes.

    The child makes the plan of the model from the ranges in the file of `plan`.

    trusted_peak_bytes   the largest resident memory of its whole life, loading included
    serving_peak_bytes   the same while it answered requests
    stages               resident memory after each step, and the peak until then

    Raises   CloisterError with the child's own message
    """
    given = (str(model.resolve()), str(plan.resolve()), "--batch", str(batch))
    command = [*python("peak"), *given, "--threads", str(threads)]
    ran = run(command, timeout_s=CHILD_TIMEOUT_S)
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines()
        raise CloisterError(f"measuring memory: {lines[-1] if lines else 'the process died'}")
    found: dict[str, object] = json.loads(ran.stdout)
    return found


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
    stored = Plan.load(options.plan)
    policy, ranges, precision, split = (
        stored.policy, stored.ranges, stored.precision, stored.split,
    )  # fmt: skip
    del stored
    graph = load(options.model)
    stages.note("model read")
    feeds = random_input(graph, options.batch)
    made = policies.from_ranges(policy, graph, ranges=ranges, precision=precision, split=split)
    plan = made.without_float_weights()
    del made
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak")
    parser.add_argument("model", type=Path)
    parser.add_argument("plan", type=Path)
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
