"""What an audit of a model's splits measured, as values and as the file report.json, and the rule.

The rule reads measured scores only: no threshold and no verdict is taken from a file. It accepts a
split if it and every deeper one stay below every threshold, for every attack of the battery.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloister.base import files
from cloister.base.reading import parsing
from cloister.errors import InputError, PlanError
from cloister.graph import graph_file
from cloister.graph.graph import Graph

FORMAT = 1
NAME = "report.json"
ATTACKS = ("gan", "decoder", "optimise", "ridge")
"""The battery. A split is accepted only if all of them were run on it."""
FLOOR = "ridge"
"""The attack that every trained one has to beat somewhere, or it is broken."""
LEAST_SEEDS = 3


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
class Estimate:
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class AttackScores:
    """What one attack reached on one split, over all seeds.

    ssim             structural similarity, in -1..1
    psnr             decibels
    explained        1 - MSE over the MSE of the blind guess, the mean of the public images
    identification   how often the true image is the best match among `candidates`
    seeds            how many runs were made
    cpu_s            processor time of all of them
    """

    attack: str
    ssim: Estimate
    psnr: Estimate
    explained: Estimate
    identification: Estimate
    seeds: int
    cpu_s: float


@dataclass(frozen=True)
class SplitScores:
    """One split; the one at the input is a control and has depth 0.

    until      the last nodes before it, as `--until` takes them
    values     what crosses
    elements   how many numbers cross for each input
    depth      linear nodes before it
    """

    until: tuple[str, ...]
    values: tuple[str, ...]
    elements: int
    depth: int
    attacks: tuple[AttackScores, ...]

    def attack(self, name: str) -> AttackScores | None:
        """The scores of one attack; None where it was not run."""
        return next((scores for scores in self.attacks if scores.attack == name), None)


@dataclass(frozen=True)
class SplitReport:
    """Everything that an audit measured; all figures hold for its attacks and its data.

    model_sha256   of the graph's canonical bytes
    data_sha256    of the images, in their order
    images         attacked images; public: those that the attacks learned from
    blind_ssim     of the blind guess
    candidates     images among which the true one is sought
    controls       what the battery made of the input itself and of a blinded transcript; the
                   latter's scores have the name `blinded`
    ranges         largest magnitudes of what the linear nodes read, for plans (`policies.origami`)
    settings       everything that decides the figures, for people
    """

    model: str
    model_sha256: str
    data: str
    data_sha256: str
    images: int
    public: int
    candidates: int
    blind_ssim: float
    splits: tuple[SplitScores, ...]
    input_control: SplitScores
    blinded_control: SplitScores
    ranges: Mapping[str, tuple[float, ...]]
    settings: Mapping[str, object]
    versions: Mapping[str, str]

    @property
    def chance(self) -> float:
        """How often a guess picks the true image."""
        return 1 / self.candidates

    @property
    def digest(self) -> bytes:
        """SHA-256 of the report."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).digest()

    def require_model(self, graph: Graph) -> None:
        """Go on only with the model that was audited.

        Raises   PlanError
        """
        if model_sha256(graph) != self.model_sha256:
            raise PlanError(
                f"the audit is of model {self.model} ({self.model_sha256[:16]}), and this is "
                "another one; audit this model"
            )

    def accepted_split(self) -> SplitScores | None:
        """The shallowest split that the rule accepts; None where it accepts none."""
        raise NotImplementedError

    def require_accepted(self, until: tuple[str, ...]) -> SplitScores:
        """The scores of a split that the rule accepts.

        Raises   PlanError for a split that was not audited or that the rule does not accept
        """
        raise NotImplementedError


def model_sha256(graph: Graph) -> str:
    """The digest by which a report names a model."""
    return hashlib.sha256(graph_file.to_bytes(graph)).hexdigest()


def save(report: SplitReport, folder: Path) -> None:
    """Write report.json."""
    document: dict[str, Any] = {"format": FORMAT, **asdict(report)}
    files.replace(folder / NAME, json.dumps(document).encode(), private=False)


def load(path: Path) -> SplitReport:
    """Read report.json, or the one in a folder."""
    with parsing(f"{path}: not a report of `cloister audit input`"):
        raise InputError(f"{path}: not read yet")
