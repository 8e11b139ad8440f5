"""Parameters of the native kernels that suit this machine: measured once, then read from a file.

Results do not depend on them, bit for bit. `settle` puts the choice for this processor in force; a
session calls it when it opens. The first one on a machine measures for at most a tenth of a second.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

import cloister.base._native as native
from cloister.base.files import read_private, replace
from cloister.base.typed_json import from_json
from cloister.errors import InputError

BUDGET_S = 0.08
"""With what is allocated, below a tenth of a second."""
GAIN = 0.97
"""Of the time that the defaults take, for another choice to replace them."""
_SIZE, _CHANNELS, _TERMS = (28, 56), 128, 3
_MEMORY_BYTES = 48 << 20
"""Terms that runs read in turn: more than most caches hold, as in a session."""
_ROUNDS, _LEAST_ROUNDS = 200, 5
_FILE_BYTES = 4096
_NEVER = 1 << 34
_log = logging.getLogger("cloister.trusted")


@dataclass(frozen=True)
class Choice:
    """A value of `native.Tuning`, and the machine that it was measured on."""

    processor: str
    cores: int
    isa: str
    tile: int
    far_tiles: int
    stream_from: int

    def to_native(self) -> native.Tuning:
        """As the kernels take it."""
        return native.Tuning(tile=self.tile, far_tiles=self.far_tiles, stream_from=self.stream_from)

    def same_machine(self, other: "Choice") -> bool:
        """Whether both were made for one processor, number of cores and instruction set."""
        mine, its = asdict(self), asdict(other)
        return all(mine[name] == its[name] for name in ("processor", "cores", "isa"))


@dataclass(frozen=True)
class MeasuredChoice:
    """The least time of one synthetic step under a choice."""

    choice: Choice
    ms: float


@cache
def settle() -> None:
    """Put the choice for this machine in force, once in a process; measure it if none is kept."""
    try:
        found = kept()
        if found is None:
            found = best(calibrate())
            keep(found)
        native.set_tuning(found.to_native())
    except (OSError, RuntimeError, InputError, ValueError, MemoryError) as error:
        _log.info("the kernels keep their default parameters: %s", error)


def calibrate(budget_s: float = BUDGET_S) -> list[MeasuredChoice]:
    """Times of all candidates, the defaults first; the tuning in force is as it was afterwards.

    Raises   InputError where the time was too short to tell
    """
    until = time.perf_counter() + budget_s
    before = native.tuning()
    step = _SyntheticStep(_MEMORY_BYTES)
    candidates = list(_candidates())
    rounds: list[list[float]] = []
    try:
        step.seconds()  # the first run finds nothing in a cache
        while len(rounds) < _ROUNDS and time.perf_counter() < until:
            rounds.append([_timed(step, candidate) for candidate in candidates])
    finally:
        native.set_tuning(before)
    if len(rounds) < _LEAST_ROUNDS:
        raise InputError(
            f"tuning: {len(rounds)} rounds of {_LEAST_ROUNDS} in {budget_s} s; "
            "run cloister bench tune when the machine is quiet"
        )
    times = zip(*rounds, strict=True)
    return [MeasuredChoice(one, 1e3 * min(ran)) for one, ran in zip(candidates, times, strict=True)]


def _timed(step: "_SyntheticStep", candidate: Choice) -> float:
    native.set_tuning(candidate.to_native())
    return step.seconds()


def best(measured: list[MeasuredChoice]) -> Choice:
    """The fastest choice, if it is clearly faster than the defaults, which come first."""
    fastest = min(measured, key=lambda one: one.ms)
    return (fastest if fastest.ms < GAIN * measured[0].ms else measured[0]).choice


def kept() -> Choice | None:
    """The choice that was kept for this machine, or None; a damaged file counts as none."""
    machine = defaults()
    try:
        found = from_json(Choice, json.loads(read_private(_path(machine), most=_FILE_BYTES)))
        native_form = found.to_native()
        before = native.tuning()
        native.set_tuning(native_form)  # refuses what is out of range
        native.set_tuning(before)
    except (OSError, InputError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    return found if found.same_machine(machine) else None


def keep(choice: Choice) -> Path:
    """Write a choice for later processes; gives its file.

    Raises   OSError
    """
    path = _path(choice)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace(path, json.dumps(asdict(choice), indent=2).encode(), private=True)
    return path


def _path(machine: Choice) -> Path:
    """Kernels with other defaults are other kernels: what was measured of them says nothing."""
    own = defaults()
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = (
        f"{machine.processor}\n{machine.cores}\n{machine.isa}\n"
        f"{own.tile} {own.far_tiles} {own.stream_from}"
    )
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(folder) / "cloister" / f"tuning-{name}.json"


def defaults() -> Choice:
    """The library's own parameters, on this machine."""
    return _here(native.Tuning())


def _here(tuning: native.Tuning) -> Choice:
    """A choice for this machine."""
    return Choice(
        _processor(),
        os.cpu_count() or 1,
        native.isa(),
        tuning.tile,
        tuning.far_tiles,
        tuning.stream_from,
    )


def _processor() -> str:
    """Model, family and stepping: virtual machines often hide the model's name."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return ", ".join(found.get(name, "") for name in wanted)


def _candidates() -> Iterator[Choice]:
    """The defaults, then others that were fastest on some machine."""
    yield defaults()
    for tile in (1024, 2048, 4096):
        for far_tiles in (0, 4):
            if (tile, far_tiles) != (native.Tuning().tile, native.Tuning().far_tiles):
                yield _here(native.Tuning(tile=tile, far_tiles=far_tiles))
    yield _here(native.Tuning(stream_from=_NEVER))


class _SyntheticStep:
    """A checked and blinded step, whose terms come from memory. Its numbers are no secrets."""

    def __init__(self, memory_bytes: int) -> None:
        (height, width), channels = _SIZE, _CHANNELS
        shape = (1, height, width, channels)
        blinded = native.isa() != "portable"
        dtype = np.uint32 if blinded else np.int16
        self._step = native.FusedStep.checked(
            native.FusedShape(
                height=height, width=width, channels=channels, lo=0.0,
                sinks=[
                    native.Sink.checked(
                        inv_scale=1.0, qmax=2047,
                        rows=np.ones((height, _TERMS, channels), np.uint64),
                        columns=np.ones((_TERMS, width), np.uint64),
                    )
                ],
            ),
            scale=np.ones(channels, np.float32), bias=np.zeros(channels, np.float32),
            a=np.ones(height * width, np.uint64), b=np.ones(channels, np.uint64),
        )  # fmt: skip
        self._reply = np.zeros(shape, np.uint32)
        self._terms = np.zeros((memory_bytes // self._reply.nbytes, *shape), np.uint32)
        self._terms.reshape(-1)[:: 4096 // self._terms.itemsize] = 1  # touched: real pages
        self._request = native.SinkArrays(
            np.zeros(shape, dtype),
            key=bytes(32) if blinded else None,
            nonces=bytes(12) if blinded else None,
        )
        self._answer_sums = np.zeros(1, np.uint64)
        self._request_sums, self._clipped = np.zeros((2, 1, 1), np.uint64)
        self._next = 0

    def seconds(self) -> float:
        """Processor time of one run, with terms that were not read lately."""
        terms = self._terms[self._next % len(self._terms)]
        self._next += 1
        began = time.thread_time()
        self._step.run(
            n=1, source=self._reply, unblind=terms, sinks=[self._request],
            answer_sums=self._answer_sums, request_sums=self._request_sums,
            clipped=self._clipped,
        )  # fmt: skip
        return time.thread_time() - began
