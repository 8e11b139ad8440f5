"""The costs of every split of a model, as values: what a sweep measures and what it says."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cloister.base.sizes import human_bytes
from cloister.splits.median_interval import MedianInterval
from cloister.splits.tee_model import TEES, ModelledOverhead, constants

NO_THEFT = (
    "thief's gain: not measured where it is missing; run `cloister audit model MODEL --data ..` "
    "with these splits, and give its report as --theft"
)


@dataclass(frozen=True)
class Phases:
    """Milliseconds of one inference, by where they go.

    open         the part outside, in ONNX Runtime on the host
    transition   into and out of the engine: everything in it but the module's own time
    compute      the same hidden part in this process, without an engine
    overhead     by which the module takes longer in the engine
    total        of these
    """

    open: MedianInterval
    transition: MedianInterval
    compute: MedianInterval
    overhead: MedianInterval
    total: MedianInterval


@dataclass(frozen=True)
class ColdPhases:
    """Milliseconds of the first inference.

    setup   until the engine's process is locked
    load    until the module's code and parameters are in it
    first   the first inference: outside, transition and engine
    total   of these
    """

    setup: MedianInterval
    load: MedianInterval
    first: MedianInterval
    total: MedianInterval


@dataclass(frozen=True)
class TrustedMemory:
    """Bytes that the hidden part needs.

    weights    packed parameters
    arena      intermediate values
    values     inputs and outputs of one sample
    resident   largest resident size of the engine's process, with its runtime; None: not known
    """

    weights: int
    arena: int
    values: int
    resident: int | None

    @property
    def module(self) -> int:
        """What the module itself needs."""
        return self.weights + self.arena + self.values


@dataclass(frozen=True)
class HiddenPart:
    """What a split hides.

    layers       how many of the last layers
    first        its first layer
    entering     bytes of the values that enter it, of one sample
    """

    layers: int
    first: str
    parameters: int
    flops: int
    entering: int


@dataclass(frozen=True)
class SplitCost:
    """One split: what it hides, what it costs, and what a thief still gets.

    hidden, memory, cold   None where nothing is hidden
    modelled               what a TEE would add, by its name
    gain                   the thief's gain, as its report has it; None: not measured
    """

    warm: Phases
    hidden: HiddenPart | None = None
    cold: ColdPhases | None = None
    memory: TrustedMemory | None = None
    modelled: Mapping[str, ModelledOverhead] | None = None
    gain: float | None = None

    @property
    def layers(self) -> int:
        """How many layers are hidden."""
        return 0 if self.hidden is None else self.hidden.layers

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; `overhead` of `modelled` says that it is a model's."""
        found = {key: value for key, value in asdict(self).items() if key != "modelled"}
        modelled = {name: asdict(one) for name, one in (self.modelled or {}).items()}
        return {"layers": self.layers, **found, "modelled": modelled}


@dataclass(frozen=True)
class SplitSweep:
    """Every split of a model.

    model        its name
    parameters   of the whole model
    flops        of one inference
    engine       what ran the hidden parts
    inputs       what they computed on
    weights      where the parameters come from
    missing      why there are no deeper splits; None: there are all
    accuracy     of the model on its test samples; None: not measured
    """

    model: str
    parameters: int
    flops: int
    engine: str
    repeats: int
    starts: int
    inputs: str
    weights: str
    splits: tuple[SplitCost, ...]
    missing: str | None = None
    accuracy: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        found = {key: value for key, value in vars(self).items() if key != "splits"}
        rows = [
            {"tee": tee, "constant": name, "value": value, "source": source}
            for tee, name, value, source in constants()
        ]
        return {**found, "splits": [one.to_dict() for one in self.splits], "constants": rows}

    def notes(self) -> list[str]:
        """What a reader of the figures must know."""
        lines = [
            f"weights: {self.weights}; inputs: {self.inputs}",
            f"milliseconds of one inference, engine {self.engine}, one thread: medians of "
            f"{self.repeats} warm inferences and of {self.starts} starts; the intervals are 95 % "
            "percentile bootstraps",
            "+ sgx1, + sgx2: what SGX would add to a warm inference, modelled from published "
            "constants, not measured",
        ]
        if self.missing is not None:
            lines.append(self.missing)
        if self.accuracy is not None:
            lines.insert(0, f"test accuracy: {self.accuracy:.4f}")
        if any(one.gain is None for one in self.splits if one.hidden is not None):
            lines.append(NO_THEFT)
        return lines


HIDDEN_COLUMNS = (
    "hidden layers", "first", "parameters", "FLOPs", "entering", "memory", "resident",
    "thief's gain",
)  # fmt: skip
TIME_COLUMNS = (
    "hidden layers", "open", "compute", "overhead", "transition", "warm ms", "95 %", "set-up",
    "load", "cold ms", "+ sgx1", "+ sgx2",
)  # fmt: skip


def hidden_rows(sweep: SplitSweep) -> list[tuple[object, ...]]:
    """What each split hides, under HIDDEN_COLUMNS."""
    rows: list[tuple[object, ...]] = []
    for one in sweep.splits:
        hidden, memory = one.hidden, one.memory
        if hidden is None or memory is None:
            rows.append((0, "", 0, 0, "", "", "", one.gain))
            continue
        resident = "" if memory.resident is None else human_bytes(memory.resident)
        sizes = (human_bytes(hidden.entering), human_bytes(memory.module), resident)
        work = (hidden.parameters, hidden.flops)
        rows.append((hidden.layers, hidden.first, *work, *sizes, one.gain))
    return rows


def time_rows(sweep: SplitSweep) -> list[tuple[object, ...]]:
    """Where the time of each split goes, under TIME_COLUMNS."""
    return [_times(one) for one in sweep.splits]


def _times(one: SplitCost) -> tuple[object, ...]:
    warm, cold, modelled = one.warm, one.cold, one.modelled or {}
    return (
        one.layers,
        warm.open.median,
        warm.compute.median,
        warm.overhead.median,
        warm.transition.median,
        warm.total.median,
        f"{warm.total.low:.3g} to {warm.total.high:.3g}",
        *((None,) * 3 if cold is None else (
            cold.setup.median, cold.load.median, cold.total.median
        )),
        *(modelled[tee].total_ms if tee in modelled else None for tee in TEES),
    )  # fmt: skip
