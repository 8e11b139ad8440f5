"""Decryption of each back end of functional encryption, and the masked layer against float32.

The products are those the CryptoNN paper times (arXiv:1904.07303, entries 1 to 100), as the server
computes them, on one core but for what NumPy's BLAS takes (OPENBLAS_NUM_THREADS). The masked layer
is the first layer of a 784-128 network on a batch of 512, timed by turns with float32 engines;
weights are new at every step of training, so preparing them is part of it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from benchmarks import options
from benchmarks.engines import torch
from benchmarks.environment import environment
from cloister.base.rng import InsecureSeededRandom
from cloister.cli.speed import session_options
from cloister.cli.timing import Timing, interleaved
from cloister.published import ddh, lwe, mask
from cloister.published.scheme import (
    CiphertextsT,
    EncryptionT,
    InnerProduct,
    KeySet,
    KeyT,
    MasterT,
    PublicT,
)
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap

BATCH, INPUTS, HIDDEN = 512, 784, 128
ENTRY = 100
LAYER_BAR = 1.1
MIN_RUN_S = 5e-3
MAX_LOOPS = 1000
MASKED = "masked layer"


@dataclass(frozen=True)
class Task:
    """X (n x terms) times Y (terms x k), the paper's time and the bar of each back end."""

    name: str
    n: int
    terms: int
    k: int
    paper_ms: float
    bars_ms: Mapping[str, float]


TASKS = (
    Task("25-term product", 1, 25, 1, 40_000.0, {"mask": 0.013, "ddh": 0.2}),
    Task("100x10 . 10x100", 100, 10, 100, 7_500.0, {"mask": 0.05, "lwe": 4.0, "ddh": 60.0}),
)


def measure(threads: options.Threads = 1, repeats: options.Repeats = 9) -> dict[str, object]:
    """Medians, the bars and the paper's times."""
    return {
        "threads": threads,
        "repeats": repeats,
        "products": [row for task in TASKS for row in _products(task, repeats)],
        "layer": _layer(threads, repeats),
        "lwe_security": lwe.EXACT.security,
        **environment(),
    }


# ---- products


def _products(task: Task, repeats: int) -> list[dict[str, object]]:
    timings, loops = _timed(_decryptions(task), repeats)
    return [_row(task, name, timing, loops[name]) for name, timing in timings.items()]


def _row(task: Task, name: str, timing: Timing, loops: int) -> dict[str, object]:
    median_ms = 1e3 * timing.wall_s / loops
    bar_ms = task.bars_ms.get(name)
    return {
        "task": task.name,
        "back_end": name,
        "median_ms": median_ms,
        "spread": timing.wall_spread,
        "bar_ms": bar_ms,
        "within_bar": None if bar_ms is None else median_ms <= bar_ms,
        "paper_ms": task.paper_ms,
        "paper_ratio": task.paper_ms / median_ms,
    }


def _decryptions(task: Task) -> dict[str, Callable[[], object]]:
    rng = InsecureSeededRandom(1)  # nothing here is secret
    # One coordinate that is always zero: see lwe on the last independent function.
    x, y = (np.zeros((rows, task.terms + 1), np.int64) for rows in (task.n, task.k))
    for array in (x, y):
        words = np.frombuffer(rng.random_bytes(2 * array.size), np.uint16)
        array[:, :-1] = 1 + words.reshape(array.shape)[:, :-1] % ENTRY
    setup = partial(_bounded, dim=task.terms + 1, rng=rng)
    return {
        "mask": _decryption(mask, setup(mask), x, y, rng),
        "lwe": _decryption(lwe, setup(lwe), x, y, rng),
        "lwe, first use": _first_use(setup(lwe), x, y, rng),
        "ddh": _decryption(ddh, setup(ddh), x, y, rng),
    }


def _bounded(scheme: Any, *, dim: int, rng: InsecureSeededRandom) -> Any:
    return scheme.setup(dim, x_bound=ENTRY, y_bound=ENTRY, rng=rng)


def _decryption(
    scheme: InnerProduct[MasterT, EncryptionT, PublicT, CiphertextsT, KeyT],
    keys: KeySet[MasterT, EncryptionT, PublicT],
    x: Int64[np.ndarray, "n dim"],
    y: Int64[np.ndarray, "k dim"],
    rng: InsecureSeededRandom,
) -> Callable[[], object]:
    """The server's half, of a key and ciphertexts made before."""
    encrypted = scheme.encrypt(keys.encryption, x, rng=rng)
    key = scheme.keygen(keys.master, y, ciphertexts_ids=getattr(encrypted, "ids", None))
    return partial(scheme.decrypt, keys.public, key, encrypted)


def _first_use(
    keys: lwe.LweKeys,
    x: Int64[np.ndarray, "n dim"],
    y: Int64[np.ndarray, "k dim"],
    rng: InsecureSeededRandom,
) -> Callable[[], object]:
    """As `_decryption`, with the public matrix expanded and the key prepared every time."""
    held = lwe.encrypt(keys.encryption, x, rng=rng)
    key = lwe.keygen(keys.master, y)

    def run() -> object:
        encrypted = lwe.LweCiphertexts(held.parameters, held.seed, held.values)
        return lwe.decrypt(
            keys.public, lwe.LweFunctionKey(key.y, key.yz, key.parameters), encrypted
        )

    return run


def _timed(
    runs: Mapping[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, Timing], dict[str, int]]:
    """Timings of so many loops of each."""
    loops = {name: _loops(run) for name, run in runs.items()}
    looped = {name: partial(_repeat, run, loops[name]) for name, run in runs.items()}
    return interleaved(looped, repeats=repeats), loops


def _loops(run: Callable[[], object]) -> int:
    """So many that one timed run is well above the clock's resolution."""
    run()
    started = time.perf_counter()
    run()
    return min(MAX_LOOPS, 1 + int(MIN_RUN_S / (time.perf_counter() - started)))


def _repeat(run: Callable[[], object], loops: int) -> None:
    for _ in range(loops):
        run()


# ---- the masked layer


def _layer(threads: int, repeats: int) -> dict[str, object]:
    rng = InsecureSeededRandom(2)
    x = np.frombuffer(rng.random_bytes(4 * BATCH * INPUTS), np.uint32)
    w = np.frombuffer(rng.random_bytes(2 * HIDDEN * INPUTS), np.int16)
    blinded = x.reshape(BATCH, 1, 1, INPUTS)
    linear = LinearMap(Geometry((1, 1), INPUTS, (1, 1), HIDDEN), w.reshape(HIDDEN, 1, 1, INPUTS))
    x_float = (x % 255).astype(np.float32).reshape(BATCH, INPUTS)
    w_float = np.ascontiguousarray(w.astype(np.float32).reshape(HIDDEN, INPUTS).T)
    engines = _float_products(x_float, w_float, threads)
    runs: dict[str, Callable[[], object]] = {
        **engines,
        MASKED: partial(pads.forward, linear, blinded, threads=threads),
    }
    timings, loops = _timed(runs, repeats)
    # As in training: processor time where there is one thread, so that other programs count less.
    times = {
        name: np.divide(timing.cpus_s if threads == 1 else timing.walls_s, loops[name] / 1e3)
        for name, timing in timings.items()
    }
    ms = {name: float(np.median(values)) for name, values in times.items()}
    fastest = min(engines, key=ms.__getitem__)
    # Turn by turn: what slows the machine down for a while slows both.
    turns = {name: times[MASKED] / times[name] for name in engines}
    ratios = {name: float(np.median(values)) for name, values in turns.items()}
    return {
        "shape": [BATCH, INPUTS, HIDDEN],
        "engines_ms": {name: ms[name] for name in engines},
        "baseline_engine": fastest,
        "baseline_ms": ms[fastest],
        "baseline_spread": float(np.ptp(times[fastest])) / ms[fastest],
        "masked_ms": ms[MASKED],
        "masked_spread": float(np.ptp(times[MASKED])) / ms[MASKED],
        # Of the fastest engine, and of each.
        "ratio": ratios[fastest],
        "ratios": ratios,
        "ratio_quartiles": [float(q) for q in np.quantile(turns[fastest], (0.25, 0.75))],
        "bar_ratio": LAYER_BAR,
        "within_bar": ratios[fastest] <= LAYER_BAR,
    }


def _float_products(
    x: Float32[np.ndarray, "n dim"], w: Float32[np.ndarray, "dim k"], threads: int
) -> dict[str, Callable[[], object]]:
    """The same product in float32; both operands are inputs, as in a training step."""
    names = ("x", "w", "y")
    shapes = (x.shape, w.shape, (x.shape[0], w.shape[1]))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", values[:2], values[2:])
    model = helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]
    ).SerializeToString()
    session = InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    runs: dict[str, Callable[[], object]] = {
        "ONNX Runtime": partial(session.run, None, {"x": x, "w": w})
    }
    if torch is not None:
        torch.set_num_threads(threads)
        runs["PyTorch"] = partial(torch.matmul, torch.from_numpy(x), torch.from_numpy(w))
    return runs
