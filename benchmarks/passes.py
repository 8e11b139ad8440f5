"""The trusted side's native passes in a session's rhythm: threads and instruction sets compared.

    python benchmarks/passes.py --model vgg16 --policy slalom [--batch 1] [--repeats 12] [--json]

The native walker runs all passes of one plan in order: milliseconds of wall time per image for one
and for two threads, and for AVX2 beside AVX-512. As in a session, the walker sleeps in recv() while
a worker computes; the worker's stand-in keeps a core busy for 5 ms, writes the reply, so that the
last-level cache holds what fits and all else comes from memory, and then sends the answer. The time
counts from there, when recv() has returned, to the end of the pass, so threads that wake late
count in full. The variants take turns, so that a disturbance meets all of them.
"""

import argparse
import json
import mmap
import socket
import statistics
import struct
import threading
import time

import numpy as np

import cloister._native as native
from cloister.base.rng import SystemRandom
from cloister.cli.bench.environment import environment
from cloister.cli.bench.inference import open_model, random_input
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.program.compile import Fuse, Remote
from cloister.trusted.runtime import Runtime

HUGE = 2 << 20
COMPUTE_S = 5e-3
# A packet is a node (int32), a request id (uint64) and padding.
PACKET_BYTES, ID_OFFSET = 16, 4


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


class Memory:
    """What the walks of one plan read and write; `replies` are the worker's to write."""

    def __init__(self, plan, steps, batch):
        self.replies, self.messages, self.unblinding = {}, {}, {}
        self.stored, self.inputs = {}, {}
        for i, step in enumerate(steps):
            if not isinstance(step, Fuse):
                continue
            before, after = (batch, *step.size), (batch, *step.out_size)
            if step.node is not None:
                self.replies[step.node] = memory(before, np.uint32)
                if step.node in plan.hidden_nodes:
                    self.unblinding[step.node] = memory(before, np.uint32)
            source = memory(before, np.float32) if step.node is None else None
            residual = memory(before, np.float32) if step.epilogue.residual else None
            self.inputs[i] = source, residual
            self.stored[i] = memory(after, np.float32) if step.stored else None
            for sink in step.sinks:
                hidden = sink in plan.hidden_nodes
                self.messages[sink] = memory(after, np.uint32 if hidden else np.int16)


class Walk:
    """All passes of one plan, and an exchange before each that reads a reply."""

    def __init__(self, runtime, held, batch, threads):
        self._held, self._batch = held, batch
        self._native = native.Walker(len(runtime.plan.linear_nodes), batch, threads)
        self._inputs = {}
        for i, step in enumerate(runtime.program.steps):
            if isinstance(step, Remote):
                packet = struct.pack("<i12x", step.node)
                self._native.add_exchange(step.node, packet, packet, ID_OFFSET, None, None)
            elif isinstance(step, Fuse):
                windowed = step.epilogue.window is not None
                number = self._native.add_pass(
                    runtime._passes[i],
                    -1 if step.node is None else step.node,
                    step.node in held.unblinding,
                    False,  # the stand-in computes nothing: sums are made, but not compared
                    held.replies.get(step.node),
                    None,
                    None if windowed else held.stored[i],
                    held.stored[i] if windowed else None,
                    step.sinks,
                    [held.messages[sink] for sink in step.sinks],
                    [np.zeros(batch, np.uint64) for _ in step.sinks],
                )
                self._inputs[number] = held.inputs[i]

    def timed_s(self, channel):
        """Wall time of one walk without its exchanges."""
        hidden = sorted(self._held.unblinding)
        if hidden:
            unblinding = [list(self._held.unblinding[node]) for node in hidden]
            self._native.begin(bytes(32), range(self._batch), hidden, unblinding)
        else:
            self._native.begin(None, (), (), ())
        for number, arrays in self._inputs.items():
            self._native.set_inputs(number, *arrays)
        steps = len(self._native.costs())
        started = time.perf_counter()
        why, *_ = self._native.run(0, steps, 1, channel.fileno(), 60.0, PACKET_BYTES)
        spent = time.perf_counter() - started
        if why != "done":
            raise RuntimeError(f"the walk stopped: {why}")
        waited = 1e-9 * sum(wait for _, wait in self._native.costs())
        self._native.end()
        return spent - waited


def answer(channel, replies):
    """The worker's stand-in: an answer is its request's packet, which names the node."""
    scratch = np.zeros(1 << 16, np.uint8)
    while packet := channel.recv(PACKET_BYTES):
        asked = time.perf_counter()
        while time.perf_counter() - asked < COMPUTE_S:
            scratch.fill(1)
        (node,) = struct.unpack_from("<i", packet)
        replies[node].fill(1)
        channel.send(packet)


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
    sets = [name for name in ("avx512", "avx2") if name in native.available_isas()]
    variants = [(name, 1) for name in sets] + [(sets[0], 2)]
    walks, held = {}, None
    for name, threads in variants:
        # Check coefficients have the form that suits the instruction set.
        native.force_isa(name)
        runtime = Runtime(plan, rng=SystemRandom())
        held = held or Memory(plan, runtime.program.steps, options.batch)
        walks[name, threads] = Walk(runtime, held, options.batch, threads)
    found = {variant: [] for variant in variants}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        worker = threading.Thread(target=answer, args=(theirs, held.replies))
        worker.start()
        for _ in range(options.repeats):
            for variant in variants:
                native.force_isa(variant[0])
                spent = walks[variant].timed_s(ours)
                found[variant].append(1e3 * spent / options.batch)
        ours.shutdown(socket.SHUT_RDWR)
        worker.join()
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
