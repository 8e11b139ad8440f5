"""Random single-element lies about real layers: how many pass the check?

Every lie adds a random non-zero number to one random element of one random layer's answer, inside a
complete run of the runtime; the check coefficients stay the same throughout, in the liar's favour.
"""

import secrets
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import cloister as cl
from benchmarks import options
from cloister.base.rng import SystemRandom
from cloister.cli.console import progress
from cloister.errors import VerificationError
from cloister.plan import policies
from cloister.ring.ring_map import RingMap
from cloister.trusted.executor import Executor
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.report import Meter
from cloister.wire.link import WorkerLink
from cloister.wire.messages import Unchecked


class LyingLink(WorkerLink):
    """Computes in this process and changes one element of one layer's answer."""

    def __init__(self, executor: Executor) -> None:
        super().__init__("liar")
        self.maps = [RingMap(node.linear) for node in executor.plan.linear_nodes]
        self.victim = -1
        self.told = False

    def load(self, message):
        pass

    def submit(self, request_id, target_id, tensors, expect):
        self.answer = self.maps[target_id].apply(tensors[0])
        if target_id == self.victim:
            at = secrets.randbelow(self.answer.size)
            wrong = int(self.answer.flat[at]) + 1 + secrets.randbelow(2**32 - 1)
            self.answer.flat[at] = wrong % 2**32
            self.told = True

    def receive(self, request_id, *, timeout_s):
        return (Unchecked(self.answer),)

    def release(self, request_id):
        pass

    def close(self):
        pass


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...")],
    lies: Annotated[int, typer.Option("--lies", min=1, help="In all.")] = 10_000,
    policy: options.Policy = "slalom",
) -> list[dict[str, object]]:
    """Lies told and accepted, by model."""
    return [_measure(path, -(-lies // len(models)), policy) for path in models]


def _measure(path: Path, lies: int, policy: str) -> dict[str, object]:
    graph = cl.load(path)
    shape = (1, *graph.types[graph.inputs[0]].shape[1:])
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    plan = policies.make(policy, graph, calibration=image)
    rng = SystemRandom()
    executor = Executor(plan, rng=rng)
    pads = InlinePads(plan, rng=rng) if plan.hidden_nodes else None
    link = LyingLink(executor)
    feeds = {graph.inputs[0]: image}

    def run() -> None:
        use = PadUse(pads, 1) if pads else None
        executor.run(feeds, link=link, pads=use, meter=Meter(), timeout_s=60.0)

    run()  # the honest answer passes
    accepted = told = 0
    started = time.perf_counter()
    with progress(path.stem) as update:
        for i in range(lies):
            link.victim, link.told = secrets.randbelow(len(plan.linear_nodes)), False
            try:
                run()
                accepted += link.told
            except VerificationError:
                pass
            told += link.told
            update(i + 1, lies)
    link.victim = -1
    run()  # and still does
    return {
        "model": path.stem,
        "policy": policy,
        "layers": len(plan.linear_nodes),
        "lies": told,
        "accepted": accepted,
        "soundness_bits": plan.claims().soundness_bits,
        "seconds": time.perf_counter() - started,
    }


def faults(found: list[dict[str, object]]) -> int:
    """Lies that were accepted."""
    return sum(row["accepted"] for row in found)
