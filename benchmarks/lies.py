"""Random single-element lies about real layers: how many pass the check?

    python benchmarks/lies.py MODEL.onnx... [--lies 10000] [--policy slalom] [--json]

Every lie adds a random non-zero number to one random element of one random layer's answer, inside a
complete run of the runtime; the check coefficients stay the same throughout, in the liar's favour.
"""

import argparse
import json
import secrets
import sys
import time
from pathlib import Path

import numpy as np

import cloister as cl
from cloister.base.rng import SystemRandom
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


def measure(path: Path, lies: int, policy: str) -> dict[str, object]:
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
    for i in range(lies):
        link.victim, link.told = secrets.randbelow(len(plan.linear_nodes)), False
        try:
            run()
            accepted += link.told
        except VerificationError:
            pass
        told += link.told
        if i % 50 == 0:
            print(f"\r{path.stem} {i}/{lies} ", end="", file=sys.stderr, flush=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--lies", type=int, default=10_000, help="in all, shared by the models")
    parser.add_argument("--policy", default="slalom", choices=["slalom", "verified"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    each = -(-options.lies // len(options.models))
    rows = [measure(path, each, options.policy) for path in options.models]
    print(file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['model']:24} {row['lies']} lies, {row['accepted']} accepted")
    sys.exit(any(row["accepted"] for row in rows))


if __name__ == "__main__":
    main()
