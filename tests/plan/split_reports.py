"""Reports of audits as tests want them: figures by split and attack."""

from dataclasses import replace

from cloister.graph.split import split_points
from cloister.plan.split_report import AuditedPixels, SplitReport, model_sha256
from cloister.plan.split_scores import ATTACKS, AttackScores, Estimate, SplitScores

IMAGES, CANDIDATES, BLIND_SSIM = 200, 50, 0.1
HARMLESS = {"ssim": 0.12, "explained": 0.05, "identification": 0.02}
EXPOSED = {"ssim": 0.9, "explained": 0.95, "identification": 1.0}


def estimate(mean, *, half=0.01, low=-1.0, high=1.0):
    return Estimate(mean, max(mean - half, low), min(mean + half, high))


def attack_scores(attack, figures, *, seeds=3):
    identification = estimate(figures["identification"], low=0.0)
    # The floor is beaten where the others find a little more.
    more = 0.0 if attack == "ridge" else 0.01
    explained = estimate(min(figures["explained"] + more, 1.0), low=-5.0)
    return AttackScores(
        attack, estimate(figures["ssim"]), Estimate(15.0, 14.0, 16.0), explained, identification,
        seeds, 1.5,
    )  # fmt: skip


def split_scores(until, figures, *, depth, **changed):
    """Scores of all attacks; `changed` gives some figures of an attack another value."""
    attacks = tuple(attack_scores(a, {**figures, **changed.get(a, {})}) for a in ATTACKS)
    return SplitScores(tuple(until), tuple(f"{name}_out" for name in until), 64, depth, attacks)


PIXELS = AuditedPixels((0.0,), (1.0,), "gray")


def split_report(splits, *, model="net", sha256="0" * 64, points=None, ranges=None, pixels=PIXELS):
    """A report of splits (until, figures, changed), the shallowest first."""
    made = tuple(
        split_scores(until, figures, depth=i + 1, **changed)
        for i, (until, figures, changed) in enumerate(splits)
    )
    return SplitReport(
        model=model, model_sha256=sha256, points=points or tuple(split.until for split in made),
        data="images", data_sha256="1" * 64,
        pixels=pixels, images=IMAGES, public=500, candidates=CANDIDATES,
        effort=1.0, blind_ssim=BLIND_SSIM, blind_psnr=12.0, splits=made,
        input_control=split_scores((), EXPOSED, depth=0),
        blinded_control=split_scores((), HARMLESS, depth=0),
        ranges=ranges or {}, settings={"seeds": 3}, versions={"cloister": "0.1.0"},
    )  # fmt: skip


def report_of(graph, *, accepted, ranges=None):
    """A report of a model whose split points from `accepted` on are harmless; None: none is."""
    points = split_points(graph)
    names = [split.name for split in points]
    first = len(names) if accepted is None else names.index(accepted)
    splits = [(split.until, HARMLESS if i >= first else EXPOSED, {})
              for i, split in enumerate(points)]  # fmt: skip
    channels = graph.types[graph.inputs[0]].shape[1]
    pixels = replace(PIXELS, channels="rgb") if channels == 3 else PIXELS
    made = split_report(
        splits, model=graph.name, sha256=model_sha256(graph), ranges=ranges, pixels=pixels
    )
    return replace(made, points=tuple(split.until for split in points))
