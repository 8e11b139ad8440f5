"""What a thief gets, as values and as the file report.json."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.audit.model.interval import Interval
from cloister.audit.model.membership import Membership
from cloister.audit.model.theft_settings import TheftSettings
from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import InputError

FORMAT = 1
DERIVED = ("gain", "sweet_spot", "verdict")
"""Parts of the file that follow from the others."""
NAME = "report.json"
SWEET = 1.1
"""A surrogate up to so many times as accurate as the best black-box one is called no better."""


@dataclass(frozen=True)
class Theft:
    """The surrogates from one query budget by the attack that came out best, in the mean.

    A thief without the evaluated samples may choose another attack, and then gets less.

    attack       trained: the hidden layers anew; linear probe: one linear layer in their place;
                 solved: the hidden part was linear and followed from equations; none: without
                 queries a surrogate has its initial weights
    membership   AUC of the threshold attack on the surrogates' confidence
    """

    queries: int
    attack: str
    accuracy: Interval
    fidelity: Interval
    membership: Interval | None


@dataclass(frozen=True)
class HeadRecovery:
    """The exact attack on a hidden part that is linear up to its softmax.

    The queries are values of the thief's own at the border, not samples: a host that runs the
    exposed layers, unchecked, decides what enters the hidden ones.

    queries        two for each feature and for the bias
    rank           of the equations; features + 1 where everything is determined
    weights_error  of the centred weights, relative; None where they are not determined
    logits_error   of the centred logits on the evaluated samples, relative
    fidelity       on the evaluated samples
    """

    features: int
    queries: int
    rank: int
    weights_error: float | None
    logits_error: float
    fidelity: float


@dataclass(frozen=True)
class SplitTheft:
    """What a thief gets of one split.

    first               the first hidden node
    hidden_parameters   weights that a thief has to find
    """

    hidden_layers: int
    first: str
    hidden_parameters: int
    thefts: tuple[Theft, ...]
    recovery: HeadRecovery | None


@dataclass(frozen=True)
class BlackBox:
    """What a thief gets who has no layer: an architecture trained from scratch."""

    architecture: str
    thefts: tuple[Theft, ...]


@dataclass(frozen=True)
class ModelTheftReport:
    """Everything that an audit found; all figures hold for its attacks and its data.

    thief_samples      samples that the thief could query; own: they came apart from the others
    evaluated          samples on which accuracy and fidelity were measured
    seeds_done         of settings.seeds; fewer where the time was used up
    victim_accuracy    the white-box bound
    """

    model: str
    model_sha256: str
    data_sha256: str
    versions: Mapping[str, str]
    settings: TheftSettings
    layers: int
    parameters: int
    classes: int
    thief_samples: int
    own: bool
    evaluated: int
    seeds_done: int
    victim_accuracy: float
    black_boxes: tuple[BlackBox, ...]
    splits: tuple[SplitTheft, ...]
    membership: tuple[Membership, ...]

    def split(self, hidden_layers: int) -> SplitTheft:
        """The split with so many hidden layers.

        Raises   InputError when the audit has not made it
        """
        for one in self.splits:
            if one.hidden_layers == hidden_layers:
                return one
        made = ", ".join(str(one.hidden_layers) for one in self.splits)
        raise InputError(
            f"split {hidden_layers}: not in this audit, which has {made}; audit it with --splits"
        )

    def black_box(self, queries: int) -> float:
        """Accuracy of the best black-box surrogate, of three architectures, at a budget."""
        return max(_at(one.thefts, queries).accuracy.mean for one in self.black_boxes)

    def gain(self, split: int) -> float:
        """The thief's gain from what a split exposes, at the largest query budget.

        The surrogate's accuracy divided by that of the best black-box surrogate with as many
        queries, both as means over the seeds. 1: the exposed layers are of no use to a thief.

        split    number of hidden layers
        Raises   InputError when the audit has not made this split
        """
        queries = self.settings.queries[-1]
        return self.ratio(self.split(split), queries)

    def ratio(self, split: SplitTheft, queries: int) -> float:
        """The surrogate's accuracy by the best black-box one's, at one budget."""
        return _at(split.thefts, queries).accuracy.mean / max(self.black_box(queries), 1e-9)

    @property
    def sweet_spot(self) -> int | None:
        """The fewest hidden layers that leave a thief no better than without the others.

        At every budget with queries, and for every split of the audit that hides more. None: there
        is none short of hiding all layers.
        """
        found = None
        budgets = [queries for queries in self.settings.queries if queries]
        for one in sorted(self.splits, key=lambda split: -split.hidden_layers):
            if any(self.ratio(one, queries) > SWEET for queries in budgets):
                break
            found = one.hidden_layers
        return None if found == self.layers else found

    @property
    def verdict(self) -> str:
        """One sentence or two, for people."""
        spot, last = self.sweet_spot, self.settings.queries[-1]
        seeds = "one seed" if self.seeds_done == 1 else f"the mean of {self.seeds_done} seeds"
        begin = (
            "No split short of hiding every layer keeps a thief"
            if spot is None
            else f"From {spot} hidden layers on, a thief is"
        )
        said = (
            f"{begin} within {SWEET:g} times of what black-box theft gives, at every query budget "
            f"here and in {seeds}."
        )
        if self.black_box(last) * SWEET >= self.victim_accuracy:
            said += (
                f" But {last} queries alone give a thief without any layer "
                f"{self.black_box(last):.1%} accuracy, where the model has "
                f"{self.victim_accuracy:.1%}: only fewer queries protect the model from that."
            )
        return said

    def accuracy_table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows: each split and bound by query budget, and the thief's gain."""
        budgets = self.settings.queries
        header = ["hidden layers", "weights hidden", *(f"{q} queries" for q in budgets), "gain"]
        rows = [
            [
                str(one.hidden_layers),
                f"{one.hidden_parameters:,}",
                *(str(theft.accuracy) for theft in one.thefts),
                f"{self.gain(one.hidden_layers):.2f}",
            ]
            for one in self.splits
        ]
        for bound in self.black_boxes:
            found = (str(theft.accuracy) for theft in bound.thefts)
            rows.append([f"black box: {bound.architecture}", "all", *found, ""])
        own = [f"{self.victim_accuracy:.1%}"] * len(budgets)
        return header, [*rows, ["white box: the model itself", "none", *own, ""]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the verdict and the gains for readers of the file."""
        found = dataclasses.asdict(self)
        gains = {str(one.hidden_layers): self.gain(one.hidden_layers) for one in self.splits}
        derived = dict(zip(DERIVED, (gains, self.sweet_spot, self.verdict), strict=True))
        return {"format": FORMAT, **found, **derived}

    def save(self, folder: Path) -> None:
        """Write report.json."""
        files.replace(folder / NAME, self.to_json().encode(), private=False)

    def to_json(self) -> str:
        """The content of report.json."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> "ModelTheftReport":
        """The report in a file, or in the folder that the audit wrote.

        Raises   InputError
        """
        path = path / NAME if path.is_dir() else path
        with parsing(f"{path}: not the report of an audit of a model"):
            text = path.read_text(encoding="utf-8")
            found = json.loads(text)
            if found.pop("format") != FORMAT:
                raise InputError(f"{path}: of another version; make the audit again")
            for derived in DERIVED:
                del found[derived]
            settings: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.pop("settings").items()
            }
            made = cls(
                settings=TheftSettings(**settings),
                black_boxes=tuple(
                    BlackBox(one["architecture"], _thefts(one["thefts"]))
                    for one in found.pop("black_boxes")
                ),
                splits=tuple(_split(one) for one in found.pop("splits")),
                membership=tuple(Membership(**one) for one in found.pop("membership")),
                **found,
            )
            # The verdict is words for people, which another version may choose differently.
            own, given = ({**json.loads(one), "verdict": ""} for one in (made.to_json(), text))
            if own != given:
                raise ValueError("what follows from its figures is not what it says")
            return made


def _at(thefts: tuple[Theft, ...], queries: int) -> Theft:
    return next(one for one in thefts if one.queries == queries)


def _thefts(found: list[dict[str, Any]]) -> tuple[Theft, ...]:
    return tuple(
        Theft(
            one.pop("queries"),
            one.pop("attack"),
            Interval(**one.pop("accuracy")),
            Interval(**one.pop("fidelity")),
            None if one["membership"] is None else Interval(**one["membership"]),
        )
        for one in found
    )


def _split(found: dict[str, Any]) -> SplitTheft:
    recovery = found.pop("recovery")
    return SplitTheft(
        thefts=_thefts(found.pop("thefts")),
        recovery=None if recovery is None else HeadRecovery(**recovery),
        **found,
    )
