"""A session timed beside other engines on the same cores, in one run and by turns.

The trusted time is the processor time of this process for a whole call, from the input array to
the released outputs; pads are made before, and reported as offline time. Every timed run follows
an untimed one of the same engine, as requests follow each other in service: otherwise each would
find the caches as another engine left them. The worker is a process of its own.
"""

import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Float32

import cloister.base._native as native
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.cli.timing import Timing, interleaved
from cloister.errors import InputError, PadsExhausted
from cloister.graph.graph import Graph
from cloister.graph.legality import require_sizes
from cloister.graph.ort_session import ORT_ERRORS
from cloister.plan.plan import Plan
from cloister.trusted.pads import factory, stored_plan
from cloister.trusted.pads.maker import InlinePads, PadMaker
from cloister.trusted.pads.source import PadSet
from cloister.trusted.pads.store import PadStore
from cloister.trusted.report import Report
from cloister.trusted.session import Session

INPUT_SEED = 1
PRIVATE = "cloister"
STORED = "cloister with stored pads"
PACKAGES = ("cloister", "numpy", "onnxruntime", "torch")
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512ifma", "avx_vnni", "amx_int8", "aes", "vaes",
    "vpclmulqdq", "neon", "asimd", "sve", "i8mm",
)  # fmt: skip
"""Processor flags that decide which kernels are used, here or in the other engines."""
Images = Float32[np.ndarray, "n ..."]
Engines = Mapping[str, Callable[[], object]]


class TimedSession:
    """A session with pads made before each call, and the reports of its calls.

    store   has its pads; default: they are made, in memory
    """

    def __init__(
        self,
        plan: Plan,
        feeds: Images,
        *,
        threads: int = 1,
        worker_threads: int = 1,
        store: PadStore | None = None,
    ) -> None:
        self.reports: list[Report] = []
        self.pads = PreparedPads(plan) if plan.hidden_nodes and store is None else None
        self._feeds = feeds
        self._session = Session(
            plan, threads=threads, worker_threads=worker_threads, batch=len(feeds),
            pads=store or self.pads,
        )  # fmt: skip

    def before(self) -> None:
        """Make pads for two calls, and make one of the calls, which is not timed."""
        if self.pads is not None:
            self.pads.fill(2 * len(self._feeds))
        self._session.run(self._feeds)

    def run(self) -> None:
        """The call that is timed."""
        self.reports.append(self._session.run(self._feeds).report)

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


def measure_session(
    plan: Plan,
    engines: Engines,
    feeds: Images,
    *,
    threads: int = 1,
    worker_threads: int = 1,
    repeats: int = 5,
    beside: Engines | None = None,
    stores: Path | None = None,
) -> dict[str, object]:
    """Medians per input; the ratio is that of the fastest engine's CPU time to the trusted one.

    beside   engines that are timed too, but are no baseline
    stores   a folder: a session with pads from a store, which is made there, takes turns with the
             others; `store_ratio` is its trusted time to that of pads in memory
    """
    others = {**engines, **(beside or {})}
    timed = partial(TimedSession, plan, feeds, threads=threads, worker_threads=worker_threads)
    with ExitStack() as stack:
        session = stack.enter_context(timed())
        sessions = {PRIVATE: session}
        if stores is not None and plan.hidden_nodes:
            # Two calls a turn; the last one reads ahead.
            inputs = len(feeds) * (2 * (1 + repeats) + 1)
            store = stack.enter_context(_filled_store(plan, stores, inputs, threads=threads))
            sessions[STORED] = stack.enter_context(timed(store=store))
        found = by_turns(others, sessions, len(feeds), repeats=repeats)
    reports = session.reports[-repeats:]
    trusted, stored = found.pop(PRIVATE), found.pop(STORED, None)
    fastest = fastest_of(engines, found)
    return {
        "baseline_engine": fastest,
        "baseline_ms": found[fastest]["ms"],
        "engines": found,
        **{f"trusted_{key}": trusted[key] for key in ("ms", "min_ms", "max_ms")},
        "ratio": found[fastest]["ms"] / trusted["ms"],
        "python_ms": statistics.median(report.python_ms for report in reports),
        "worker_ms": statistics.median(report.worker_ms / report.inputs for report in reports),
        "private_wall_ms": trusted["wall_ms"],
        "offline_ms": statistics.median(session.pads.made_ms) if session.pads is not None else 0.0,
        "soundness_bits": reports[-1].soundness_bits,
        **_store_times(stored, trusted),
    }


def _store_times(
    stored: Mapping[str, float] | None, trusted: Mapping[str, float]
) -> dict[str, object]:
    if stored is None:
        return {}
    return {
        **{f"store_{key}": stored[key] for key in ("ms", "min_ms", "max_ms", "wall_ms")},
        "store_ratio": stored["ms"] / trusted["ms"],
        "store_min_ratio": stored["min_ms"] / trusted["min_ms"],
    }


@contextmanager
def _filled_store(plan: Plan, folder: Path, inputs: int, *, threads: int) -> Iterator[PadStore]:
    """A store with pads for so many inputs, which is deleted afterwards."""
    with TemporaryDirectory(dir=folder) as place:
        path, key = Path(place) / "pads", Path(place) / "key"
        store = stored_plan.open_or_create(plan, path, key_file=key, rng=SystemRandom())
        factory.fill(store, PadMaker(plan, threads=threads), count=inputs)
        yield store


def by_turns(
    engines: Engines, sessions: Mapping[str, TimedSession], inputs: int, *, repeats: int
) -> dict[str, dict[str, float]]:
    """What engines and sessions take for each of a batch's inputs, by name."""
    timings = interleaved(
        {**engines, **{name: session.run for name, session in sessions.items()}},
        repeats=repeats,
        before={**engines, **{name: session.before for name, session in sessions.items()}},
    )
    return {name: _per_input(timing, inputs) for name, timing in timings.items()}


def fastest_of(engines: Engines, times: Mapping[str, Mapping[str, float]]) -> str:
    """The name of the engine that takes the least CPU time."""
    return min(engines, key=lambda name: times[name]["ms"])


def _per_input(timing: Timing, inputs: int) -> dict[str, float]:
    """Milliseconds of processor time, and on the clock."""
    return {
        "ms": 1e3 * timing.cpu_s / inputs,
        "min_ms": 1e3 * min(timing.cpus_s) / inputs,
        "max_ms": 1e3 * max(timing.cpus_s) / inputs,
        "wall_ms": 1e3 * timing.wall_s / inputs,
    }


def random_input(graph: Graph, batch: int) -> np.ndarray:
    """Inputs uniform in [0, 1), the same in every run: times do not depend on values.

    Raises   InputError for a model with several inputs, or a free size besides the batch
    """
    if len(graph.inputs) != 1:
        raise InputError("only models with one input are measured")
    require_sizes(graph, "a measurement")
    known = graph.types[graph.inputs[0]]
    shape = tuple(batch if size is None else size for size in known.shape)
    data = InsecureSeededRandom(INPUT_SEED).random_bytes(int(np.prod(shape)))
    return (np.frombuffer(data, np.uint8).reshape(shape) / np.float32(256)).astype(known.dtype)


class OrtBaseline:
    """A model in ONNX Runtime, float32, in the order of its nodes and without busy waiting.

    Raises   InputError when ONNX Runtime does not take the model, or fails on an input
    """

    def __init__(self, model: bytes | onnx.ModelProto, threads: int) -> None:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session = ort.InferenceSession(
                data, session_options(threads), providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise InputError(f"ONNX Runtime does not take the model: {error}") from None
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Images) -> list[np.ndarray]:
        """The model's outputs."""
        try:
            return [np.asarray(y) for y in self._session.run(None, {self._input: x})]
        except ORT_ERRORS as error:
            raise InputError(f"ONNX Runtime cannot run the model: {error}") from None


def session_options(threads: int) -> ort.SessionOptions:
    """ONNX Runtime as it is measured: all optimisations, `threads` cores, threads that sleep."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4  # its messages contain names of the model
    return options


class PreparedPads:
    """Pads in memory, made when `fill` is called, so that a call does not wait for them."""

    kind = "prepared"
    known_to = ()

    def __init__(self, plan: Plan) -> None:
        self._source = InlinePads(plan, rng=SystemRandom())
        self._ready: list[PadSet] = []
        self.made_ms: list[float] = []
        self._lock = threading.Lock()

    @property
    def plan_digest(self) -> bytes:
        """See PadSource."""
        return self._source.plan_digest

    def fill(self, count: int) -> None:
        """Make pads until so many are there; `made_ms` keeps the CPU time of each."""
        with self._lock:
            while len(self._ready) < count:
                started = time.process_time()
                self._ready += self._source.take(1)
                self.made_ms.append(1e3 * (time.process_time() - started))

    def take(self, count: int) -> list[PadSet]:
        """See PadSource."""
        with self._lock:
            if count > len(self._ready):
                raise PadsExhausted("not enough pads were prepared")
            taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    def blame(self, pads: Sequence[PadSet]) -> str:
        """See PadSource: they were computed here."""
        return ""

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """See PadSource."""
        self._source.recycle(pads)

    def erase(self) -> None:
        """See PadSource."""
        self._source.erase()


def machine() -> dict[str, object]:
    """What a reader needs to judge a figure: processor, its flags, kernels in use and versions."""
    names = _cpuinfo("model name")
    flags = " ".join([*_cpuinfo("flags"), *_cpuinfo("Features")]).split()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in FLAGS if flag in flags],
        "isa": native.isa(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpuinfo(key: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [
        line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key
    ]
