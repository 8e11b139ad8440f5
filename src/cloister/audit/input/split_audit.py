"""The audit of a model's splits: every split, by every attack of the battery, resumable."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from cloister.audit.input.attack_battery import BATTERY
from cloister.audit.input.image_score import ImageScores, blind_scores, score_images, summarise
from cloister.audit.input.split_attack import run_attack
from cloister.audit.input.split_images import SplitImages
from cloister.audit.input.split_jobs import BLINDED, INPUT, JobResult, SplitJob, as_pixels
from cloister.audit.input.split_page import Gallery, split_page
from cloister.audit.input.split_settings import SplitSettings
from cloister.audit.input.split_views import ViewedSplit, blinded_view, input_view, split_view
from cloister.audit.job_results import JobResults, begin_in_time
from cloister.base import files
from cloister.base.reading import parsing
from cloister.base.rng import Csprng, SystemRandom
from cloister.data.preprocessing import Channels
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.split import Split, split_at, split_points
from cloister.pages.page import png
from cloister.plan import policies
from cloister.plan.input_factors import reads_raw
from cloister.plan.quantise import calibrate
from cloister.plan.quantised import Ranges
from cloister.plan.split_report import (
    CANDIDATES,
    RULE,
    AuditedPixels,
    SplitReport,
    model_sha256,
    save,
)
from cloister.plan.split_scores import AttackScores, SplitScores

PAGE = "report.html"
SHOWN = 8
"""Images of the gallery."""
CALIBRATED = 256
"""Public images that set the ranges of plans."""

KEPT_BYTES = 1 << 30
"""Of views, before those that were made first are made again for the next seed."""

Said = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class SplitAudit:
    """An audit's report, and pictures of what its attacks made."""

    report: SplitReport
    gallery: Gallery


def audit_splits(
    graph: Graph,
    images: SplitImages,
    *,
    folder: Path,
    settings: SplitSettings | None = None,
    minutes: float | None = None,
    threads: int = 1,
    rng: Csprng | None = None,
    said: Said = lambda done, total, text: None,
) -> SplitReport:
    """Attack the splits of a model as `attack_splits` does, and write report.json and report.html.

    Raises    InputError, UnsupportedError
    """
    audit = attack_splits(
        graph, images, folder=folder, settings=settings, minutes=minutes, threads=threads, rng=rng,
        said=said,
    )  # fmt: skip
    save(audit.report, folder)
    plan = policies.origami(graph, audit=audit.report)
    page = split_page(audit.report, plan.claims(), audit.gallery)
    # It shows images, as kept results show reconstructions of them.
    files.replace(folder / PAGE, page.encode(), private=True)
    return audit.report


def attack_splits(
    graph: Graph,
    images: SplitImages,
    *,
    folder: Path,
    settings: SplitSettings | None = None,
    minutes: float | None = None,
    threads: int = 1,
    rng: Csprng | None = None,
    said: Said = lambda done, total, text: None,
) -> SplitAudit:
    """Attack the splits of a model.

    folder    keeps the result of every job: the same call, or one for more splits, attacks or
              seeds, goes on with them
    minutes   after which no job is begun; the report then says what is missing
    rng       of the one-time pads of the sessions whose messages are attacked
    said      is called with how many jobs of how many are done, and what the last one gave

    Raises    InputError, UnsupportedError
    """
    settings = settings or SplitSettings()
    torch.set_num_threads(threads)
    audit = _Audit(graph, images, settings, rng or SystemRandom())
    results = JobResults(folder, audit.identity)
    audit.read(results)
    last = ""

    def update(done: int, total: int) -> None:
        said(done, total, last)

    jobs = [job for job in audit.jobs() if job not in audit.done]
    made = len(audit.done)
    total = made + len(jobs)
    begun = begin_in_time(jobs, minutes=minutes, update=lambda done, _: update(made + done, total))
    for job in begun:
        result = audit.run(job)
        results.add(job.name, result.to_json())
        audit.done[job] = result
        last = audit.text(job)
    return SplitAudit(audit.report(results.path), audit.gallery())


class _Audit:
    """The jobs of one audit and what is known of them."""

    def __init__(
        self, graph: Graph, images: SplitImages, settings: SplitSettings, rng: Csprng
    ) -> None:
        self._rng = rng
        self._graph, self._images, self._settings = graph, images, settings
        self._points = split_points(graph)
        if not self._points:
            raise InputError(
                f"{graph.name}: has no split point: one linear node, or values that get past every "
                "place"
            )
        self._splits = _ordered(graph, settings.splits, self._points)
        self._model = model_sha256(graph)
        self._data = images.sha256
        self._versions = {n: version(n) for n in ("cloister", "torch", "onnxruntime")}
        self._ranges = _ranges(graph, images)
        self._blind_guess = np.asarray(images.public.mean(axis=0, dtype=np.float64), np.float32)
        self._blind = blind_scores(images.attacked, blind_guess=self._blind_guess)
        self._viewed: dict[str, ViewedSplit] = {}
        self.done: dict[SplitJob, JobResult] = {}

    @property
    def identity(self) -> str:
        """What one job depends on; more splits, attacks or seeds are added to those done."""
        settings = {"effort": self._settings.effort, "pixels": asdict(self._pixels())}
        parts = (self._model, self._data, json.dumps(settings), json.dumps(self._versions))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def jobs(self) -> list[SplitJob]:
        """Seed by seed, so that an audit that is cut short has all splits with fewer seeds."""
        places = [INPUT, BLINDED, *(split.name for split in self._splits)]
        return [
            SplitJob(place, attack, seed)
            for seed in range(self._settings.seeds)
            for place in places
            for attack in self._settings.attacks
        ]

    def read(self, results: JobResults) -> None:
        """Take over the results of this audit's jobs."""
        with parsing(f"{results.path}: damaged; remove it to start anew"):
            for job in self.jobs():
                if job.name in results.done:
                    count = len(self._images.attacked)
                    self.done[job] = JobResult.from_json(results.done[job.name], images=count)

    def run(self, job: SplitJob) -> JobResult:
        """Make one attack."""
        viewed = self._view(job.place)
        found = run_attack(
            BATTERY[job.attack], viewed.knowledge, viewed.attacked, seed=job.seed,
            effort=self._settings.effort,
        )  # fmt: skip
        scores = score_images(
            self._images.attacked, found.images, blind_guess=self._blind_guess,
            candidates=CANDIDATES,
        )  # fmt: skip
        shown = found.images[:SHOWN] if job.seed == 0 else ()
        return JobResult(scores, found.cpu_s, tuple(self._picture(one) for one in shown))

    def text(self, job: SplitJob) -> str:
        """What one job gave, on a line."""
        result = self.done[job]
        return (
            f"{job.place}: {job.attack}, seed {job.seed}: identifies "
            f"{result.scores.identified.mean():.1%}, SSIM {result.scores.ssim.mean():.3f}, "
            f"{result.cpu_s:.1f} s"
        )

    def report(self, path: Path) -> SplitReport:
        """Everything that is done.

        Raises   InputError when there is nothing to report yet
        """
        splits = tuple(self._scores(split.name, split) for split in self._splits)
        splits = tuple(split for split in splits if split.attacks)
        if not splits:
            raise InputError(
                "the time for the audit was used up before a split was attacked; what was made is "
                f"kept in {path}: run the same command again"
            )
        return SplitReport(
            model=self._graph.name,
            model_sha256=self._model,
            points=tuple(split.until for split in self._points),
            data=self._images.name,
            data_sha256=self._data,
            pixels=self._pixels(),
            images=len(self._images.attacked),
            public=len(self._images.public),
            candidates=CANDIDATES,
            effort=self._settings.effort,
            blind_ssim=float(self._blind.ssim.mean()),
            blind_psnr=float(self._blind.psnr.mean()),
            splits=splits,
            input_control=self._scores(INPUT, None),
            blinded_control=self._scores(BLINDED, None),
            ranges=self._ranges,
            settings=self._said_settings(),
            versions=self._versions,
        )

    def gallery(self) -> Gallery:
        """The originals, and what each attack made of them at each place, in the first seed."""
        originals = tuple(self._picture(one) for one in self._images.attacked[:SHOWN])
        found = {
            (job.place, job.attack): result.pictures
            for job, result in self.done.items()
            if job.seed == 0
        }
        return Gallery(originals, self._picture(self._blind_guess), found)

    def _picture(self, image: np.ndarray) -> bytes:
        return png(as_pixels(image, reverse=self._images.channels is Channels.BGR))

    def _view(self, place: str) -> ViewedSplit:
        """The views of one place: made once, unless there is too little memory for all."""
        if place not in self._viewed:
            while self._viewed and sum(v.nbytes for v in self._viewed.values()) > KEPT_BYTES:
                del self._viewed[next(iter(self._viewed))]
            self._viewed[place] = self._new_view(place)
        return self._viewed[place]

    def _new_view(self, place: str) -> ViewedSplit:
        graph, images, ranges, rng = self._graph, self._images, self._ranges, self._rng
        if place == INPUT:
            return input_view(graph, images, ranges=ranges, rng=rng)
        if place == BLINDED:
            first = self._points[0]
            return blinded_view(graph, images, shallowest=first, ranges=ranges, rng=rng)
        split = next(split for split in self._splits if split.name == place)
        return split_view(graph, images, split=split, ranges=ranges, rng=rng)

    def _scores(self, place: str, split: Split | None) -> SplitScores:
        values = () if split is None else split.values
        attacks = []
        for attack in self._settings.attacks:
            runs = [
                result
                for job, result in self.done.items()
                if (job.place, job.attack) == (place, attack)
            ]
            if runs:
                attacks.append(_attack_scores(attack, runs, self._blind))
        return SplitScores(
            () if split is None else split.until,
            values,
            sum(_elements(self._graph, value) for value in values or self._graph.inputs),
            0 if split is None else _depth(self._graph, split),
            tuple(attacks),
        )

    def _said_settings(self) -> dict[str, object]:
        return {
            "seeds": self._settings.seeds,
            "attacks": list(self._settings.attacks),
            "splits": [split.name for split in self._splits],
            "repeated images left out": self._images.repeated,
            "thresholds": {
                "ssim": RULE.ssim,
                "explained": RULE.explained,
                "identification": RULE.identification,
            },
        }

    def _pixels(self) -> AuditedPixels:
        pixels = self._images.pixels
        return AuditedPixels(pixels.mean, pixels.std, str(self._images.channels))


def _attack_scores(attack: str, runs: Sequence[JobResult], blind: ImageScores) -> AttackScores:
    summary = summarise([run.scores for run in runs], blind)
    return AttackScores(
        attack, summary.ssim, summary.psnr, summary.explained, summary.identification, len(runs),
        math.fsum(run.cpu_s for run in runs),
    )  # fmt: skip


def _elements(graph: Graph, value: str) -> int:
    return math.prod(size or 1 for size in graph.types[value].shape[1:])


def _ordered(
    graph: Graph, named: tuple[tuple[str, ...], ...] | None, points: tuple[Split, ...]
) -> tuple[Split, ...]:
    """The splits to attack, the shallowest first.

    Raises   InputError for a split that the model does not have, or that is named twice
    """
    if named is None:
        return points
    splits = [split_at(graph, until) for until in named]
    if len({split.before for split in splits}) < len(splits):
        raise InputError("--splits: names a split twice")
    return tuple(sorted(splits, key=lambda split: (_depth(graph, split), len(split.before))))


def _depth(graph: Graph, split: Split) -> int:
    """Linear nodes before a split."""
    return sum(is_linear(graph, node) for node in graph.nodes if node.name in split.before)


def _ranges(graph: Graph, images: SplitImages) -> dict[str, Ranges]:
    """Largest magnitudes of what every linear node reads, over public images."""
    linear = [node for node in graph.nodes if is_linear(graph, node)]
    names = frozenset(node.name for node in linear)
    raw = frozenset(node.name for node in linear if reads_raw(graph, node, names))
    samples = {graph.inputs[0]: images.inputs(images.public[:CALIBRATED])}
    return calibrate(graph, linear, samples, by_channel=raw)
