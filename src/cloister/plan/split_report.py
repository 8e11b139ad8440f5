"""What an audit of a model's splits measured, as values and as the file report.json, and the rule.

The rule reads measured scores only: no threshold and no verdict is taken from a file. It accepts a
split if it and every deeper one stay below every threshold, for every attack of the battery.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cloister.base import files
from cloister.base.reading import open_regular, parsing
from cloister.base.typed_json import from_json
from cloister.errors import InputError, PlanError
from cloister.graph import graph_file
from cloister.graph.graph import Graph
from cloister.graph.split import split_points
from cloister.plan.split_scores import ATTACKS, AttackScores, Estimate, SplitScores

FORMAT = 1
NAME = "report.json"
FLOOR = "ridge"
"""The attack that every other one has to beat somewhere, or it is broken."""
LEAST_SEEDS = 3
FULL_EFFORT = 1.0
"""Of an audit's searches: an attack that was stopped early finds nothing."""
ENOUGH_PUBLIC = 500
"""Images that the attacks learn from: those that learned from few find little."""
CANDIDATES = 50
"""Images among which the true one is sought: among fewer, a multiple of chance says less."""
MOST_IMAGES = 1_000_000
"""So many can be attacked: tests of a control count its hits one by one."""
LARGEST_TOP = 3.4028234663852886e38
"""Of a range: the largest float32 number."""
LEAST_FOUND = 0.95
"""Share of the images that every attack has to identify where it reads them."""
SIGNIFICANCE = 1e-4
"""Of the test whether an attack finds more than chance in a blinded transcript."""


@dataclass(frozen=True)
class Thresholds:
    """What every attack has to stay below, at the unfavourable end of its 95 % interval.

    ssim             structural similarity of originals and reconstructions, above that of the
                     blind guess
    explained        1 - MSE over the blind guess's: the share of the variance that is found
    identification   times the chance level
    """

    ssim: float = 0.10
    explained: float = 0.25
    identification: float = 5.0


RULE = Thresholds()


@dataclass(frozen=True)
class Exceedance:
    """A figure of an attack that is not below its threshold, both at the scale of the figure."""

    attack: str
    figure: str
    found: float
    threshold: float

    def __str__(self) -> str:
        form = ".3f" if self.figure == "ssim" else ".1%"
        return (
            f"{self.attack} reaches {self.figure} {self.found:{form}}, and the threshold is "
            f"{self.threshold:{form}}"
        )


@dataclass(frozen=True)
class SplitVerdict:
    """What the rule says about one split.

    exceedances   the figures of this split that are too high
    deeper     names of deeper splits where some are
    flaws      why the rule accepts no split of this report
    """

    split: SplitScores
    exceedances: tuple[Exceedance, ...]
    deeper: tuple[str, ...]
    flaws: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether nothing speaks against it."""
        return not (self.exceedances or self.deeper or self.flaws)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not accepted."""
        deeper = (f"the deeper split {self.deeper[-1]!r} fails",) if self.deeper else ()
        return (*map(str, self.exceedances), *deeper, *self.flaws)


@dataclass(frozen=True)
class AuditedPixels:
    """How pixels in 0..1 became inputs: (pixel - mean) / std.

    mean, std   one number, or one per channel in the model's order
    channels    that order: rgb, bgr or gray
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: str

    def __post_init__(self) -> None:
        if not self.mean or not self.std:
            raise InputError("audited pixels: without a mean or a std")

    def equals(self, other: "AuditedPixels") -> bool:
        """Whether both make the same inputs, up to rounding."""

        def close(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
            count = max(len(one), len(two))
            if {len(one), len(two)} - {1, count}:
                return False
            pairs = zip(one * (count // len(one)), two * (count // len(two)), strict=True)
            return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in pairs)

        same = close(self.mean, other.mean) and close(self.std, other.std)
        return same and self.channels == other.channels

    def __str__(self) -> str:
        mean, std = (
            ",".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std)
        )
        return f"mean {mean} and std {std} of pixels in 0..1, {self.channels}"


def weaknesses(*, effort: float, public: int) -> tuple[str, ...]:
    """Why an audit of this effort, whose attacks learn from so many images, accepts no split."""
    found = []
    if effort < FULL_EFFORT:
        found.append(f"the attacks searched with effort {effort:g}, and {FULL_EFFORT:g} is needed")
    if public < ENOUGH_PUBLIC:
        found.append(f"the attacks learned from {public} images, and {ENOUGH_PUBLIC} are needed")
    return tuple(found)


@dataclass(frozen=True)
class SplitReport:
    """Everything that an audit measured; all figures hold for its attacks and its data.

    model_sha256   of the graph's canonical bytes
    points         every split point of the model (`split_points`), audited or not
    data_sha256    of the images, in their order
    pixels         how the images became inputs of the model
    images         attacked images; public: those that the attacks learned from
    blind_ssim     of the blind guess, as blind_psnr
    candidates     images among which the true one is sought
    effort         of the attacks' searches, as a factor
    splits         from the shallowest to the deepest
    controls       what the battery made of the input itself and of a blinded transcript
    ranges         largest magnitudes of what the linear nodes read, for plans (`policies.origami`)
    settings       everything that decides the figures, for people
    """

    model: str
    model_sha256: str
    points: tuple[tuple[str, ...], ...]
    data: str
    data_sha256: str
    pixels: AuditedPixels
    images: int
    public: int
    candidates: int
    effort: float
    blind_ssim: float
    blind_psnr: float
    splits: tuple[SplitScores, ...]
    input_control: SplitScores
    blinded_control: SplitScores
    ranges: Mapping[str, tuple[float, ...]]
    settings: Mapping[str, object]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.splits:
            raise InputError("a report of no split")
        named = [frozenset(split.until) for split in self.splits]
        if len(set(named)) < len(named) or frozenset() in named:
            raise InputError("a report that names a split twice, or none")
        depths = [split.depth for split in self.splits]
        if depths != sorted(depths):
            raise InputError("a report whose splits are not in the order of their depth")
        if not 1 < self.candidates <= self.images <= MOST_IMAGES or self.public < 1:
            raise InputError(
                f"a report of {self.images} attacked images, {self.public} public ones and "
                f"{self.candidates} candidates"
            )
        if not 0 < self.effort < math.inf:
            raise InputError(f"a report of attacks with effort {self.effort}")
        if not -1 <= self.blind_ssim <= 1 or not math.isfinite(self.blind_psnr):
            raise InputError(f"a report whose blind guess has an SSIM of {self.blind_ssim}")
        for node, tops in self.ranges.items():
            if not all(0 <= top <= LARGEST_TOP for top in tops):
                raise InputError(f"a report with a range of {node!r} that no float32 value has")

    @property
    def chance(self) -> float:
        """How often a guess picks the true image."""
        return 1 / self.candidates

    @property
    def limits(self) -> Mapping[str, float]:
        """The rule's thresholds at the scale of this report's figures."""
        return {
            "ssim": self.blind_ssim + RULE.ssim,
            "explained": RULE.explained,
            "identification": RULE.identification * self.chance,
        }

    # ---- the rule

    @cached_property
    def verdicts(self) -> tuple[SplitVerdict, ...]:
        """The rule's answer for every split, in their order."""
        exceedances = [tuple(self._exceedances(split)) for split in self.splits]
        flaws = self.flaws
        return tuple(
            SplitVerdict(
                split,
                exceedances[i],
                tuple(
                    self.splits[k].name for k in range(i + 1, len(self.splits)) if exceedances[k]
                ),
                flaws,
            )
            for i, split in enumerate(self.splits)
        )

    def accepted_split(self) -> SplitScores | None:
        """The shallowest split that is accepted; None is a valid answer."""
        return next((one.split for one in self.verdicts if one.accepted), None)

    def require_accepted(self, until: Sequence[str]) -> SplitScores:
        """The scores of a split that the rule accepts.

        Raises   PlanError when the report does not have it, or the rule does not accept it
        """
        for one in self.verdicts:
            if frozenset(one.split.until) == frozenset(until):
                if one.accepted:
                    return one.split
                raise PlanError(
                    f"the split at {one.split.name!r}: the audit does not accept it: "
                    f"{one.reasons[0]}"
                )
        made = ", ".join(split.name for split in self.splits)
        raise PlanError(
            f"the split at {','.join(until)!r}: the audit has not attacked it; it has {made}; "
            "audit it with --splits"
        )

    def require_model(self, graph: Graph) -> None:
        """Go on only with a report of this model.

        Raises   PlanError
        """
        if model_sha256(graph) != self.model_sha256:
            raise PlanError(
                f"the audit is of the model {self.model!r} with SHA-256 {self.model_sha256[:16]}, "
                f"and not of {graph.name!r}; audit this model"
            )
        if tuple(split.until for split in split_points(graph)) != self.points:
            raise PlanError("the audit knows other split points of the model; make it again")

    def require_pixels(self, pixels: AuditedPixels) -> None:
        """Go on only with inputs that are made of pixels as those of the audit.

        Raises   PlanError
        """
        if not self.pixels.equals(pixels):
            raise PlanError(
                f"the audit's inputs were made with {self.pixels}, and these with {pixels}; what "
                "crosses a split tells more of other inputs, so give the options of the audit"
            )

    @property
    def flaws(self) -> tuple[str, ...]:
        """What is missing for a verdict, and what is wrong with the attacks."""
        return tuple(self._missing()) + tuple(
            f"attack {attack} is broken: {why}" for attack, why in self.broken.items()
        )

    @cached_property
    def broken(self) -> Mapping[str, str]:
        """The attacks that fail a control or never beat the floor, each with the reason."""
        found = {}
        for attack in ATTACKS:
            reason = self._failed_control(attack) or self._below_floor(attack)
            if reason is not None:
                found[attack] = reason
        return found

    @property
    def conclusion(self) -> str:
        """One sentence or two, for people."""
        split = self.accepted_split()
        if split is not None:
            return (
                f"The split at {split.name!r} is accepted: there and at every deeper split each "
                f"attack stays below every threshold, on {self.images} images of {self.data}."
            )
        deepest = self.verdicts[-1]
        if not deepest.exceedances:
            return f"No split is accepted, as the audit allows no verdict: {self.flaws[0]}."
        return (
            f"No split is accepted: at the deepest one, {deepest.split.name!r}, "
            f"{deepest.exceedances[0]}. A plan keeps every linear layer blinded."
        )

    def judgement(self) -> dict[str, Any]:
        """What the rule makes of the figures, as plain values."""
        accepted = self.accepted_split()
        return {
            "accepted": None if accepted is None else list(accepted.until),
            "conclusion": self.conclusion,
            "verdicts": {one.split.name: list(one.reasons) for one in self.verdicts},
            "broken": dict(self.broken),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header with the thresholds, and rows: what the strongest attack reaches at every split
        (the unfavourable end of its interval), and the verdict.
        """
        limits = self.limits
        bounds = [f"{figure} (< {limit:.3f})" for figure, limit in limits.items()]
        header = ["split after", *bounds, "verdict"]
        rows = []
        for one in self.verdicts:
            row = [one.split.name]
            for figure in limits:
                found = [(_high(scores, figure), scores.attack) for scores in one.split.attacks]
                row.append("{:.3f} ({})".format(*max(found)) if found else "-")
            rows.append([*row, "accepted" if one.accepted else "not accepted"])
        return header, rows

    def _exceedances(self, split: SplitScores) -> list[Exceedance]:
        return [
            Exceedance(scores.attack, figure, _high(scores, figure), limit)
            for scores in split.attacks
            for figure, limit in self.limits.items()
            if not _high(scores, figure) < limit
        ]

    @property
    def weaknesses(self) -> tuple[str, ...]:
        """Why attacks like these find too little for a verdict."""
        return weaknesses(effort=self.effort, public=self.public)

    def _missing(self) -> list[str]:
        missing = list(self.weaknesses)
        if self.candidates < CANDIDATES:
            missing.append(f"the true image is sought among {self.candidates}, not {CANDIDATES}")
        made = {split.until for split in self.splits}
        if undone := [f"split {','.join(one)!r}" for one in self.points if one not in made]:
            missing.append(f"no attack was run at {_places(undone)}")
        places = [(f"split {split.name!r}", split) for split in self.splits]
        places += [
            ("the control at the input", self.input_control),
            ("the blinded control", self.blinded_control),
        ]
        for attack in ATTACKS:
            runs = {place: split.attack(attack) for place, split in places}
            absent = [place for place, scores in runs.items() if scores is None]
            few = [p for p, scores in runs.items() if scores and scores.seeds < LEAST_SEEDS]
            if absent:
                missing.append(f"attack {attack} was not run at {_places(absent)}")
            if few:
                missing.append(
                    f"attack {attack} was run with fewer than {LEAST_SEEDS} seeds at {_places(few)}"
                )
        return missing

    def _failed_control(self, attack: str) -> str | None:
        """Why an attack's figures mean nothing; an attack that was not run has none."""
        at_input, blinded = self.input_control.attack(attack), self.blinded_control.attack(attack)
        if at_input is not None and not at_input.identification.mean >= LEAST_FOUND:
            return (
                f"it identifies {at_input.identification.mean:.1%} of the images where it reads "
                f"them, and has to identify {LEAST_FOUND:.0%}"
            )
        if blinded is not None:
            # Images are the independent units: the seeds of an image share its transcript.
            hits = round(blinded.identification.mean * self.images)
            if binomial_tail(hits, self.images, self.chance) < SIGNIFICANCE:
                return (
                    f"it identifies {blinded.identification.mean:.1%} of the images behind "
                    f"one-time pads, where chance is {self.chance:.1%}"
                )
        return None

    def _below_floor(self, attack: str) -> str | None:
        pairs = [(split.attack(attack), split.attack(FLOOR)) for split in self.splits]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if attack == FLOOR or not both:
            return None
        if any(
            a.explained.mean > b.explained.mean or a.identification.mean > b.identification.mean
            for a, b in both
        ):
            return None
        more = "; give it more effort" if self.effort < FULL_EFFORT else ""
        return f"it beats {FLOOR} on no split{more}"

    # ---- the file

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON of everything that was measured."""
        return _digest(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the file has them, without the digest."""
        plain: dict[str, Any] = json.loads(_canonical(asdict(self)))
        return {"format": FORMAT, **{name: plain[name] for name in asdict(self)}}


def _high(scores: AttackScores, figure: str) -> float:
    """The unfavourable end of a figure's interval."""
    estimate: Estimate = getattr(scores, figure)
    return estimate.high


def _places(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """How likely so many hits, or more, are by chance."""
    below = (
        math.exp(
            math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1)
            + i * math.log(chance) + (trials - i) * math.log1p(-chance)
        )
        for i in range(hits)
    )  # fmt: skip
    return max(0.0, 1.0 - math.fsum(below))


def model_sha256(graph: Graph) -> str:
    """The digest by which a report names a model."""
    return hashlib.sha256(graph_file.to_bytes(graph)).hexdigest()


def save(report: SplitReport, folder: Path) -> None:
    """Write report.json."""
    document = {**report.to_dict(), "digest": report.digest.hex()}
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    files.replace(folder / NAME, text.encode(), private=False)


def load(path: Path) -> SplitReport:
    """The report in a file, or in the folder that the audit wrote.

    Its digest finds damage and slips, not a forger, who can compute it anew.

    Raises   InputError for a file that is none, or that was changed since the audit
    """
    path = path / NAME if path.is_dir() else path
    with parsing(f"{path}: not a report of `cloister audit input`"):
        with open_regular(path) as file:
            found = json.loads(file.read().decode())
        if found.pop("format") != FORMAT:
            raise InputError(f"{path}: of another version; make the audit again")
        stored = found.pop("digest")
        if _digest({"format": FORMAT, **found}).hex() != stored:
            raise InputError(
                f"{path}: its content does not match its digest: it was damaged or edited; make "
                "the audit again"
            )
        try:
            return from_json(SplitReport, found)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _canonical(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(document: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(_canonical(document).encode()).digest()
