"""Attacks on a log of encrypted training, from the file to scored verdicts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from cloister.audit.training.attack_settings import AttackSettings
from cloister.audit.training.attacks import run_attacks
from cloister.audit.training.evidence import Evidence
from cloister.audit.training.judge import Judged, judge, overall
from cloister.audit.training.prior import Prior
from cloister.audit.training.training_page import (
    COLUMNS,
    conclusion,
    encrypted_page,
    score_rows,
    severity,
    thresholds,
)
from cloister.audit.training.truth import Truth, check_truth
from cloister.audit.training.truth_files import read_prior, read_truths
from cloister.authority.request_log import read_releases
from cloister.errors import InputError


@dataclass(frozen=True, eq=False)
class LogAudit:
    """What every attack made of a log; `evidence` is None for an empty one."""

    judged: list[Judged]
    evidence: Evidence | None
    prior: Prior
    truth: Truth | None

    @property
    def verdict(self) -> str:
        """The worst of all attacks."""
        return overall(self.judged)

    @property
    def conclusion(self) -> str:
        """The meaning of the verdict."""
        return conclusion(self.judged, self.evidence)

    @property
    def thresholds(self) -> str:
        """The stated rule of every verdict."""
        return thresholds()

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of `rows`."""
        return COLUMNS

    @property
    def severity(self) -> str:
        """How many samples the verdict is about."""
        return severity(self.judged, self.evidence)

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each attack."""
        return score_rows(self.judged)

    def page(self) -> str:
        """A document that shows samples."""
        return encrypted_page(self.judged, self.evidence, self.prior, truth=self.truth)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        evidence = self.evidence
        attacks = [
            {
                "attack": one.finding.attack,
                "verdict": one.verdict,
                "samples": len(one.finding.ids),
                "determined": one.finding.determined,
                "worked_with": one.finding.note,
                "score": None if one.score is None else asdict(one.score),
            }
            for one in self.judged
        ]
        return {
            "verdict": self.verdict,
            "releases": {} if evidence is None else evidence.counts,
            "samples": 0 if evidence is None else len(evidence.seen),
            "severity": self.severity,
            "shape": None if evidence is None else evidence.shape,
            "attacks": attacks,
        }


def audit_log(
    path: Path,
    *,
    truth: Sequence[Path] = (),
    order: Sequence[Path] = (),
    public: Path | None = None,
    settings: AttackSettings | None = None,
    tail_ok: bool = False,
) -> LogAudit:
    """Run every attack on a log, and score it where the truth is given.

    truth     .npz files of the samples, one for each part of the data set
    order     which sample is which, for plain data as `truth`
    public    an .npz file of similar data that the attacker has
    tail_ok   leave out a last record that was cut off

    Raises   InputError naming the file
    """
    settings = settings or AttackSettings()
    releases = read_releases(path, tail_ok=tail_ok)
    first = next(releases, None)
    real = read_truths(truth, order)
    shape = first.shape if first is not None else (1, 1, 1 if real is None else real.x.shape[1])
    # An empty log says nothing about shapes, and there is nothing to attack with a prior.
    prior = read_prior(None if first is None else public, shape, *settings.value_range)
    if real is not None and real.x.shape[1] != prior.dim:
        raise InputError(
            f"{truth[0]}: samples of {real.x.shape[1]} elements, the transcript's have {prior.dim}"
        )
    seen = releases if first is None else chain([first], releases)
    evidence, findings = run_attacks(
        seen, prior, samples=settings.samples, steps=settings.steps,
        largest_lattice=settings.lattice, value_bits=settings.value_bits,
    )  # fmt: skip
    if real is not None and evidence is not None:
        check_truth(evidence, real, prior, value_bits=settings.value_bits)
    return LogAudit([judge(one, real, prior) for one in findings], evidence, prior, real)
