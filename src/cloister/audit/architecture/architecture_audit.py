"""Whether somebody outside an engine can tell which of several modules it runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from cloister.audit.architecture.engine_observer import (
    CHANNELS,
    FUEL,
    EngineObservation,
    observe,
    observe_fuel,
    table_of,
)
from cloister.audit.architecture.tell_apart import FOLDS, Accuracy, tell_apart
from cloister.base.rng import Csprng
from cloister.bundle.compiled_module import CompiledModule
from cloister.errors import InputError
from cloister.trusted.engines.module_engine import EngineKind
from cloister.trusted.engines.padding_profile import PaddingProfile

DEFAULT_OBSERVATIONS = 30
DEFAULT_CALLS = 20


@dataclass(frozen=True)
class ArchitectureAudit:
    """How well modules are told apart, by what is observed.

    plain, padded   by the names of CHANNELS; padding does not change what a module executes
    """

    modules: tuple[str, ...]
    engine: EngineKind
    padding: PaddingProfile
    observations: int
    calls: int
    plain: Mapping[str, Accuracy]
    padded: Mapping[str, Accuracy]

    def rows(self) -> list[tuple[str, str, str]]:
        """For a table: what is observed, the accuracy without padding and with it."""
        return [(name, _text(self.plain[name]), _text(self.padded[name])) for name in self.plain]

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        return 1 / len(self.modules)

    @property
    def conclusion(self) -> str:
        """What the padding is worth, in a sentence."""
        left = [name for name, one in self.padded.items() if one.better_than_chance]
        if not left:
            return "With padding, none of these tells the modules apart."
        return f"With padding, these still tell the modules apart: {', '.join(left)}."

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "modules": list(self.modules),
            "engine": self.engine,
            "padding": asdict(self.padding),
            "observations": self.observations,
            "calls": self.calls,
            "chance": self.chance,
            "plain": {name: asdict(one) for name, one in self.plain.items()},
            "padded": {name: asdict(one) for name, one in self.padded.items()},
            "conclusion": self.conclusion,
        }


def audit_architectures(
    modules: Mapping[str, CompiledModule],
    engine: EngineKind,
    *,
    padding: PaddingProfile,
    rng: Csprng,
    observations: int = DEFAULT_OBSERVATIONS,
    calls: int = DEFAULT_CALLS,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> ArchitectureAudit:
    """Observe each module many times, in an order drawn anew, with and without padding.

    observations   starts of each module's engine, without padding and with it
    calls          of one sample, at each start
    progress       called with the starts that are done, and all

    Raises   InputError for modules that their inputs or outputs already tell apart, and for padding
             that one exceeds; EngineError
    """
    _check(modules, observations)
    seen: dict[tuple[bool, str], list[EngineObservation]] = {
        (padded, name): [] for padded in (False, True) for name in modules
    }
    # A machine that gets slower or faster meanwhile does so for all of them.
    for turn in range(observations):
        for place, (padded, name) in enumerate(_shuffled(list(seen), rng)):
            found = observe(
                modules[name], engine, padding=padding if padded else None, calls=calls, rng=rng
            )
            seen[padded, name].append(found)
            progress(turn * len(seen) + place + 1, observations * len(seen))
    if engine == "wasm":
        for name, module in modules.items():
            for padded in (False, True):
                fuel = observe_fuel(module, count=observations, rng=rng)
                pairs = zip(seen[padded, name], fuel, strict=True)
                seen[padded, name] = [replace(one, fuel=used) for one, used in pairs]
    plain, padded_ = (
        _accuracies([seen[padded, name] for name in modules], engine) for padded in (False, True)
    )
    return ArchitectureAudit(tuple(modules), engine, padding, observations, calls, plain, padded_)


def _check(modules: Mapping[str, CompiledModule], observations: int) -> None:
    if len(modules) < 2:
        raise InputError("telling modules apart takes two or more, of different names")
    if observations < FOLDS:
        raise InputError(f"{observations} observations are too few for {FOLDS} folds")
    borders = {name: (one.manifest.inputs, one.manifest.outputs) for name, one in modules.items()}
    first, *others = borders
    for name in others:
        if borders[name] != borders[first]:
            raise InputError(
                f"{name}: has other inputs or outputs than {first}, which tell them apart at once"
            )


def _accuracies(
    observed: Sequence[Sequence[EngineObservation]], engine: EngineKind
) -> dict[str, Accuracy]:
    classes = np.repeat(np.arange(len(observed)), [len(one) for one in observed])
    table = table_of([one for each in observed for one in each])
    shown = {name: fields for name, fields in CHANNELS.items() if name != FUEL or engine == "wasm"}
    return {
        name: tell_apart(
            np.stack([table[field] for field in fields], axis=1), classes, comparisons=len(shown)
        )
        for name, fields in shown.items()
    }


def _shuffled(items: Sequence[tuple[bool, str]], rng: Csprng) -> list[tuple[bool, str]]:
    keys = [rng.random_bytes(16) for _ in items]
    return [item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]


def _text(accuracy: Accuracy) -> str:
    return f"{accuracy.value:.2f} ({accuracy.low:.2f} to {accuracy.high:.2f})"
