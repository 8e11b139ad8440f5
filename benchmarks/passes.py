"""The trusted side's native passes alone: threads and instruction sets against each other.

    python benchmarks/passes.py --model vgg16 --policy slalom [--batch 1] [--repeats 12] [--json]

All passes of one plan in order, without a worker: milliseconds of wall time per image for one and
for two threads, and for AVX2 beside AVX-512. As in a session, another thread wrote a reply just
before it is read, so the last-level cache holds what fits, and all else comes from memory. The
variants take turns, so that a disturbance meets all of them.
"""

import argparse
import json
import mmap
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cloister import _native
from cloister.cli.bench.environment import environment
from cloister.cli.bench.inference import open_model, random_input
from cloister.crypto.csprng import SystemRandom
from cloister.graph.onnx_import import from_model
from cloister.graph.passes import prepare
from cloister.plan import policies
from cloister.trusted.program import Fuse
from cloister.trusted.runtime import Runtime

HUGE = 2 << 20


def memory(shape, dtype):
    """Touched memory of huge pages, as sessions use it for what is large."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if nbytes < HUGE:
        return np.zeros(shape, dtype)
    block = mmap.mmap(-1, nbytes + HUGE)
    block.madvise(mmap.MADV_HUGEPAGE)
    array = np.ndarray(shape, dtype, buffer=block)
    array.fill(0)
    return array


def calls(plan, batch):
    """One call of every pass, without the number of threads."""
    runtime = Runtime(plan, rng=SystemRandom())
    for i, step in enumerate(runtime.program.steps):
        if not isinstance(step, Fuse):
            continue
        hides = [plan.protection_of(plan.linear_nodes[sink]).hidden for sink in step.sinks]
        reply = step.node is not None
        hidden = reply and plan.protection_of(plan.linear_nodes[step.node]).hidden
        before, after = (batch, *step.size), (batch, *step.out_size)
        kept = memory(after, np.float32) if step.stored else None
        windowed = step.epilogue.window is not None
        arguments = (
            batch,
            memory(before, np.uint32 if reply else np.float32),
            memory(before, np.uint32) if hidden else None,
            memory(before, np.float32) if step.epilogue.residual else None,
            None if windowed else kept,
            kept if windowed else None,
            [memory(after, np.uint32 if hide else np.int16) for hide in hides],
            [bytes(32) if hide else None for hide in hides],
            [bytes(12 * batch) if hide else None for hide in hides],
            [None] * len(hides),
            np.zeros(batch, np.uint64),
            np.zeros((len(hides), batch), np.uint64),
        )
        yield runtime._passes[i], arguments


def timed(work, batch, threads, *, worker):
    spent = 0.0
    for native, arguments in work:
        worker.submit(arguments[1].fill, 1).result()
        started = time.perf_counter()
        native.run(*arguments, threads)
        spent += time.perf_counter() - started
    return 1e3 * spent / batch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--policy", default="slalom", choices=tuple(policies.OUTSOURCED))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    graph = prepare(from_model(open_model(options.model), name=options.model))
    plan = policies.make(options.policy, graph, calibration=random_input(graph, 1))
    sets = [name for name in ("avx512", "avx2") if name in _native.available_isas()]
    work = {}
    for name in sets:
        # Check coefficients have the form that suits the instruction set.
        _native.force_isa(name)
        work[name] = list(calls(plan, options.batch))
    variants = [(name, 1) for name in sets] + [(sets[0], 2)]
    found = {variant: [] for variant in variants}
    with ThreadPoolExecutor(1) as worker:
        for _ in range(options.repeats):
            for name, threads in variants:
                _native.force_isa(name)
                spent = timed(work[name], options.batch, threads, worker=worker)
                found[name, threads].append(spent)
    median = {variant: statistics.median(times) for variant, times in found.items()}
    result = {
        "model": options.model, "policy": options.policy, "batch": options.batch,
        "ms": {f"{name} x{threads}": ms for (name, threads), ms in median.items()},
        "fastest_ms": {f"{name} x{threads}": min(ms) for (name, threads), ms in found.items()},
        "two_threads_ratio": median[sets[0], 1] / median[sets[0], 2],
        "avx2_to_avx512": median["avx2", 1] / median["avx512", 1] if len(sets) == 2 else None,
        **environment(),
    }  # fmt: skip
    print(json.dumps(result, indent=2) if options.json else result)


if __name__ == "__main__":
    main()
