"""The trusted side's fused steps in a session's rhythm: threads and instruction sets compared.

The native executor runs all fused steps of one plan in order: milliseconds of wall time per image
for one and for two threads, and for AVX2 beside AVX-512. As in a session, it sleeps in recv() while
a worker computes; the worker's stand-in keeps a core busy for 5 ms, writes the reply, so that the
last-level cache holds what fits and all else comes from memory, and then sends the answer. The time
counts from there, when recv() has returned, to the end of the pass, so threads that wake late
count in full. The variants take turns, so that a disturbance meets all of them.

`floor_ms` is the counted floor (floor.py) of one thread with AVX-512, with ceilings measured in
this run; `passes_ms` is the median that one thread takes, and `ratio_to_floor` their ratio. Replies
and requests lie in shared memory, which has huge pages only where the system's setting
`shmem_enabled` of transparent huge pages allows them; all else lies in private memory with huge
pages.
"""

import mmap
import socket
import statistics
import struct
import threading
import time

import numpy as np

import cloister.base._native as native
from benchmarks import floor, networks, options
from benchmarks.environment import environment
from cloister.base.rng import SystemRandom
from cloister.errors import InputError
from cloister.trusted.executor import Executor
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.program.steps import Exchange, Fused

HUGE = 2 << 20
COMPUTE_S = 5e-3
# A packet is a node (int32), a request id (uint64) and padding.
PACKET_BYTES, ID_OFFSET = 16, 4


def mapped(shape, dtype, flags):
    """Touched memory, of huge pages where the kernel gives them to this kind."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if nbytes < HUGE:
        return np.zeros(shape, dtype)
    block = mmap.mmap(-1, nbytes + HUGE, flags=flags | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    begin = -np.frombuffer(block, np.uint8, 1).ctypes.data % HUGE
    array = np.ndarray(shape, dtype, buffer=block, offset=begin)
    array.fill(0)
    return array


def shared(shape, dtype):
    """As a session's replies and requests."""
    return mapped(shape, dtype, mmap.MAP_SHARED)


def private(shape, dtype):
    """As all that a session keeps to itself."""
    return mapped(shape, dtype, mmap.MAP_PRIVATE)


class Memory:
    """What the fused steps of one plan read and write; `replies` are the worker's to write."""

    def __init__(self, plan, steps, batch):
        self.replies, self.messages = {}, {}
        words = PadLayout.of(plan).words
        self.terms = [private((words,), np.uint32) for _ in range(batch)] if words else []
        self.stored, self.inputs = {}, {}
        for i, step in enumerate(steps):
            if not isinstance(step, Fused):
                continue
            before, after = (batch, *step.size), (batch, *step.out_size)
            if step.node is not None:
                self.replies[step.node] = shared(before, np.uint32)
            source = private(before, np.float32) if step.node is None else None
            residual = private(before, np.float32) if step.epilogue.residual else None
            self.inputs[i] = source, residual
            self.stored[i] = private(after, np.float32) if step.stored else None
            for sink in step.sinks:
                hidden = sink in plan.hidden_nodes
                self.messages[sink] = shared(after, np.uint32 if hidden else np.int16)


class Steps:
    """All fused steps of one plan, and an exchange before each that reads a reply."""

    def __init__(self, executor, held, batch, threads):
        self._held, self._batch = held, batch
        plan = executor.plan
        checked = [plan.protection_of(node).checked for node in plan.linear_nodes]
        layout = PadLayout.of(plan)
        self._native = native.Executor(
            checked=checked,
            batch=batch,
            threads=threads,
            pad_offsets=layout.offsets,
            pad_words=layout.words,
        )
        self._inputs = {}
        # The stand-in's answers are wrong: with coefficients of 0 all sums are computed, and equal.
        executor.checks.erase()
        for i, (step, stage) in enumerate(
            zip(executor.program.steps, executor._make_stages(executor.checks), strict=True)
        ):
            if isinstance(step, Exchange):
                packet = struct.pack("<i12x", step.node)
                self._native.add_exchange(
                    node=step.node, packet=packet, answer=packet, id_offset=ID_OFFSET,
                    staged=None, place=None,
                )  # fmt: skip
            elif isinstance(step, Fused):
                windowed = step.epilogue.window is not None
                self._native.add_fused(
                    stage.fused_step,
                    node=step.node,
                    unblinds=step.node in layout.offsets,
                    binds=True,
                    reply=held.replies.get(step.node),
                    residual=None,
                    store_pre=None if windowed else held.stored[i],
                    store_post=held.stored[i] if windowed else None,
                    sink_nodes=step.sinks,
                    messages=[held.messages[sink] for sink in step.sinks],
                    clipped=[np.zeros(batch, np.uint64) for _ in step.sinks],
                )
                self._inputs[i] = (*held.inputs[i], len(step.sinks))
            else:
                self._native.add_outside()
        self._count = len(executor.program.steps)

    def timed_s(self, channel):
        """Wall time of all fused steps without the exchanges."""
        images = len(self._held.terms)
        self._native.begin(
            keys=[bytes(32)] * images,
            pad_ids=range(images),
            terms=self._held.terms,
            mask_keys=[None] * images,
        )
        for number, (source, residual, sinks) in self._inputs.items():
            none = [None] * sinks
            self._native.bind(number, source=source, residual=residual, messages=none, pads=none)
        spent, first = 0.0, 0
        while first <= self._count:
            started = time.perf_counter()
            stop = self._native.run(
                first, next_request_id=1, descriptor=channel.fileno(), timeout_s=60.0,
                max_packet_bytes=PACKET_BYTES,
            )  # fmt: skip
            spent += time.perf_counter() - started
            if stop.why not in ("done", "outside"):
                raise RuntimeError(f"the executor stopped: {stop.why}")
            first = stop.step + 1
        costs = np.empty((self._count, 3), np.int64)
        _, wait_ns, _ = self._native.costs(costs, self._count)
        waited = 1e-9 * wait_ns
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


def measure(
    model: options.Model = "vgg16",
    policy: options.Policy = "slalom",
    batch: options.Batch = 1,
    repeats: options.Repeats = 12,
) -> dict[str, object]:
    """Milliseconds per image of one and two threads, and of AVX2 beside AVX-512."""
    plan, _ = networks.planned(model, policy)
    sets = [name for name in ("avx512", "avx2") if name in native.available_isas()]
    if not sets:
        raise InputError("passes: measured on processors with AVX2 only")
    variants = [(name, 1) for name in sets] + [(sets[0], 2)]
    timed, held = {}, None
    for name, threads in variants:
        # Check coefficients have the form that suits the instruction set.
        native.force_isa(name)
        executor = Executor(plan, rng=SystemRandom())
        held = held or Memory(plan, executor.program.steps, batch)
        timed[name, threads] = Steps(executor, held, batch, threads)
    found = {variant: [] for variant in variants}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        worker = threading.Thread(target=answer, args=(theirs, held.replies))
        worker.start()
        for _ in range(repeats):
            for variant in variants:
                native.force_isa(variant[0])
                found[variant].append(1e3 * timed[variant].timed_s(ours) / batch)
        ours.shutdown(socket.SHUT_RDWR)
        worker.join()
    lowest = floor.milliseconds(plan) if sets[0] == "avx512" else None
    median = {variant: statistics.median(times) for variant, times in found.items()}
    return {
        "model": model,
        "policy": policy,
        "batch": batch,
        "ms": {f"{name} x{threads}": ms for (name, threads), ms in median.items()},
        "fastest_ms": {f"{name} x{threads}": min(ms) for (name, threads), ms in found.items()},
        "floor_ms": lowest,
        "passes_ms": median[sets[0], 1],
        "ratio_to_floor": median[sets[0], 1] / lowest if lowest else None,
        "two_threads_ratio": median[sets[0], 1] / median[sets[0], 2],
        "avx2_to_avx512": median["avx2", 1] / median["avx512", 1] if len(sets) == 2 else None,
        **environment(),
    }
