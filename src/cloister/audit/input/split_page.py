"""The page of `cloister audit input`: verdict, curves, reconstructions, figures and settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cloister.audit.input.split_jobs import BLINDED, INPUT
from cloister.pages import svg
from cloister.pages.page import Section, legend, page, paragraph, subtitle, table
from cloister.plan.claims import Claims, Extent, Role, Strength, Verb
from cloister.plan.split_report import (
    CANDIDATES,
    LEAST_FOUND,
    RULE,
    SIGNIFICANCE,
    SplitReport,
    SplitVerdict,
)
from cloister.plan.split_scores import ATTACKS, AttackScores, Estimate, SplitScores

LEAD = (
    "A worker that computes the end of a model in the clear sees the values that cross the split. "
    "This page says what these attacks made of them, on these images."
)
LIMITS = (
    "These figures are empirical. They hold for the attacks named here, with as many public images "
    "and as much computation as is stated, and for images like these. A stronger attack, or more "
    "public images, may find more. A large figure proves that the split gives images away; a small "
    "one proves no protection. What is blinded before the split is hidden by one-time pads, "
    "whatever this page says."
)
INTERVALS = (
    "Means over images, each averaged over the seeds first, with 95 % intervals over images: "
    "Student's for SSIM and PSNR, the delta method for the explained share, Wilson's for "
    "identification."
)
FIGURES = (
    "SSIM: structural similarity of original and reconstruction. PSNR: in decibels. Explained: 1 - "
    "MSE over the MSE of the blind guess, which is the mean of the public images. Identification: "
    "how often the true image is the best match of the reconstruction among {candidates}."
)
TITLES: Mapping[str, str] = {
    "gan": "conditional GAN",
    "decoder": "decoder",
    "optimise": "input optimisation",
    "ridge": "ridge regression",
}
COLOURS: Mapping[str, str] = {name: f"var(--line-{i})" for i, name in enumerate(ATTACKS, start=1)}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 270, 48, 12, 12, 40
SHIFT = 3.0
"""Between the attacks' intervals at one split."""


@dataclass(frozen=True)
class _Axis:
    """The ends of an axis; what lies beyond is drawn at the end."""

    low: float
    high: float
    step: float

    def marks(self) -> list[float]:
        """The values that are written beside it."""
        return [
            self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)
        ]


KINDS = {Extent.NOTHING: "good", Extent.BOUNDED: "", Extent.EVERYTHING: "bad"}
"""How a claim is drawn, by how much it gives away."""
NEXT = {
    True: "Next: cloister run MODEL INPUT --policy origami --until auto --audit with this report.",
    False: "Next: cloister run MODEL INPUT --policy slalom, which blinds every linear layer.",
}
SHARE = _Axis(0, 1, 0.25)


@dataclass(frozen=True)
class Gallery:
    """Pictures (PNG) of some images, and of what each attack made of them in the first seed.

    found   by place (a split's name, or a control's) and attack
    """

    originals: tuple[bytes, ...]
    blind_guess: bytes
    found: Mapping[tuple[str, str], tuple[bytes, ...]]


def split_page(report: SplitReport, claims: Claims, gallery: Gallery) -> str:
    """The whole document; `claims` are those of the plan that follows from the report."""
    sections = split_sections(report, claims, gallery)
    return page(f"What the splits of {report.model} give away", LEAD, sections)


def split_sections(report: SplitReport, claims: Claims, gallery: Gallery) -> list[Section]:
    """Verdict, curves, pictures, figures, controls, settings and limits."""
    return [
        Section("Verdict", _verdict(report, claims)),
        Section("Curves", curves(report)),
        Section("Verdict of every split", _verdicts(report)),
        Section("One GAN, judged by SSIM alone", paragraph(original_criterion(report))),
        Section("Originals and reconstructions", _gallery(report, gallery)),
        Section("All figures", _figures(report)),
        Section("Controls", _controls(report)),
        Section("Settings", _settings(report)),
        Section("Limits", paragraph(LIMITS)),
    ]


# ---- verdict


def _verdict(report: SplitReport, claims: Claims) -> str:
    accepted = report.accepted_split() is not None
    parts = [paragraph(report.conclusion, kind="good" if accepted else "bad")]
    if report.flaws[1:]:
        more = "; ".join(report.flaws[1:])
        parts.append(paragraph(f"Moreover: {more}.", kind="bad"))
    parts.append(
        paragraph(
            f"The rule accepts the shallowest split for which it and every deeper one stay below "
            f"every threshold, for every attack, at the unfavourable end of the 95 % intervals: "
            f"SSIM at most {RULE.ssim:.2f} above that of a blind guess, {RULE.explained:.0%} of "
            f"the variance explained, and {RULE.identification:g} times the chance of picking the "
            f"true image."
        )
    )
    parts.append(paragraph(NEXT[accepted]))
    parts.append(paragraph("What a plan that follows this report claims about its worker:"))
    # What the audit is about comes first: it is the only statement that attacks show.
    learned = claims.of(Role.WORKER, Verb.LEARNS)
    for one in sorted(learned, key=lambda one: one.strength is not Strength.EMPIRICAL):
        why = f"assuming: {one.assumes}" if one.assumes else str(one.strength)
        parts.append(paragraph(f"{one.about}: {one.text} ({why})", kind=KINDS[one.extent]))
    return "".join(parts)


def _verdicts(report: SplitReport) -> str:
    header = ("split", "after", "linear layers", "numbers that cross", "verdict", "why")
    rows = [
        (
            str(i), one.split.name, f"{one.split.depth}", f"{one.split.elements:,}",
            "accepted" if one.accepted else "not accepted", _why(one),
        )
        for i, one in enumerate(report.verdicts, start=1)
    ]  # fmt: skip
    return table(header, rows)


def _why(verdict: SplitVerdict) -> str:
    """The attacks that find too much at a split; what holds for all splits is said above."""
    by_figure: dict[str, list[str]] = {}
    for one in verdict.exceedances:
        by_figure.setdefault(one.figure, []).append(TITLES[one.attack])
    made = len(verdict.split.attacks)
    parts = [
        f"{figure} of {'every attack' if len(names) == made > 1 else ', '.join(names)}"
        for figure, names in by_figure.items()
    ]
    if verdict.deeper:
        parts.append(f"the deeper split {verdict.deeper[-1]} fails")
    return "; ".join(parts) or ("" if verdict.accepted else "the audit allows no verdict")


def original_criterion(report: SplitReport) -> str:
    """Where one conditional GAN judged by SSIM would split, and what other attacks find there.

    The published criterion: its means, without intervals, controls or another attack.
    """
    attack, limit = ATTACKS[0], report.limits["ssim"]
    means = [split.attack(attack) for split in report.splits]
    if any(one is None for one in means):
        return "The conditional GAN was not run on every split."
    below = [one is not None and one.ssim.mean < limit for one in means]
    first = next((i for i in range(len(below)) if all(below[i:])), None)
    begin = (
        "Origami as published judges a split by one conditional GAN and by SSIM. With the mean "
        f"SSIM of the GAN alone, and the same threshold of {limit:.3f},"
    )
    if first is None:
        return f"{begin} no split would do here either."
    split = report.splits[first]
    strongest = max(split.attacks, key=lambda one: one.identification.mean)
    found = (
        f"There the strongest attack, {TITLES[strongest.attack]}, identifies "
        f"{_rate(strongest.identification)} of the images (chance {report.chance:.1%}) and "
        f"explains {_rate(strongest.explained)} of their variance."
    )
    verdict = report.verdicts[first]
    judged = (
        "The whole rule accepts this split too."
        if verdict.accepted
        else "The whole rule does not accept this split."
    )
    return f"{begin} the split would be after {split.name!r}. {found} {judged}"


# ---- curves


def curves(report: SplitReport) -> str:
    """A figure for each score: a line for each attack over the splits, the input first."""
    limits = report.limits
    lines = [(TITLES[name], COLOURS[name], False) for name in _attacks(report)]
    lines += [("blind guess or chance", "var(--soft)", True), ("threshold", "var(--warn)", True)]
    scores = [one for place in _places(report) for one in place.attacks]
    decibels = 20 * math.ceil(max([40.0, *(one.psnr.high for one in scores)]) / 20)
    worst = min((one.explained.low for one in scores), default=0.0)
    drawn = [
        _curve(report, "SSIM", lambda s: s.ssim, report.blind_ssim, limits["ssim"], SHARE),
        _curve(
            report, "PSNR in dB", lambda s: s.psnr, report.blind_psnr, None,
            _Axis(0, decibels, 10 if decibels <= 60 else 20),
        ),
        _curve(
            report, f"Identification, 1 in {report.candidates}", lambda s: s.identification,
            report.chance, limits["identification"], SHARE,
        ),
        _curve(
            report, "Explained share of the variance", lambda s: s.explained, 0.0,
            limits["explained"], SHARE if worst >= 0 else _Axis(-1, 1, 0.5),
        ),
    ]  # fmt: skip
    said = FIGURES.format(candidates=report.candidates)
    names = "; ".join(f"{i} {split.name}" for i, split in enumerate(report.splits, start=1))
    return (
        legend(lines) + f'<div class="figures">{"".join(drawn)}</div>\n'
        + paragraph(f"Splits: input (the control), {names}.", kind="soft")
        + paragraph(f"{said} {INTERVALS}", kind="soft")
    )  # fmt: skip


def _curve(
    report: SplitReport,
    title: str,
    figure: Callable[[AttackScores], Estimate],
    guess: float,
    limit: float | None,
    axis: "_Axis",
) -> str:
    places = _places(report)

    def y(value: float) -> float:
        share = (min(max(value, axis.low), axis.high) - axis.low) / (axis.high - axis.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def x(place: int) -> float:
        return LEFT + 18 + place * (WIDTH - LEFT - RIGHT - 36) / max(len(places) - 1, 1)

    parts = []
    for value in axis.marks():
        parts.append(_across(y(value), "currentColor", opacity=0.2))
        parts.append(svg.label(LEFT - 6, y(value) + 4, f"{value:g}", anchor="end"))
    for place in range(0, len(places), -(-len(places) // 16)):
        text = "input" if place == 0 else str(place)
        parts.append(svg.label(x(place), HEIGHT - BOTTOM + 16, text, anchor="middle"))
    parts.append(svg.label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "split", anchor="middle"))
    parts.append(_across(y(guess), "var(--soft)", dashed=True))
    if limit is not None:
        parts.append(_across(y(limit), "var(--warn)", dashed=True))
    names = _attacks(report)
    for i, name in enumerate(names):
        shift = SHIFT * (i - (len(names) - 1) / 2)
        parts += _line(places, name, figure, [x(place) + shift for place in range(len(places))], y)
    caption = f"{title}, by split"
    return svg.figure(
        "".join(parts), width=WIDTH, height=HEIGHT, title=caption, caption=caption, style=""
    )


def _line(
    places: Sequence[SplitScores],
    name: str,
    figure: Callable[[AttackScores], Estimate],
    x: Sequence[float],
    y: Callable[[float], float],
) -> list[str]:
    """One attack's means with their intervals."""
    there = [(i, figure(s)) for i, one in enumerate(places) if (s := one.attack(name)) is not None]
    colour = COLOURS[name]
    parts = [svg.polyline([(x[i], y(found.mean)) for i, found in there], colour)]
    for i, found in there:
        parts.append(svg.polyline([(x[i], y(found.low)), (x[i], y(found.high))], colour))
        title = f"{TITLES[name]} at {places[i].name}: {_interval(found)}"
        parts.append(svg.dot(x[i], y(found.mean), colour, title=title))
    return parts


def _across(y: float, colour: str, *, dashed: bool = False, opacity: float = 1) -> str:
    return svg.polyline([(LEFT, y), (WIDTH - RIGHT, y)], colour, dashed=dashed, opacity=opacity)


# ---- pictures and tables


def _gallery(report: SplitReport, gallery: Gallery) -> str:
    places = [("The input itself (control)", INPUT)]
    places += [
        (f"Split {i}: after {split.name}", split.name)
        for i, split in enumerate(report.splits, start=1)
    ]
    places.append(("Under one-time pads (control)", BLINDED))
    count = len(gallery.originals)
    parts = [
        paragraph(
            "The first attacked images, as each attack reconstructs them with the first seed.",
            kind="soft",
        )
    ]
    for title, place in places:
        rows: list[tuple[str | bytes, ...]] = [("original", *gallery.originals)]
        rows += [
            (TITLES[name], *gallery.found[place, name])
            for name in ATTACKS
            if gallery.found.get((place, name))
        ]
        parts.append(subtitle(title) + table([""] * (count + 1), rows))
    guess = table(("", ""), [("blind guess", gallery.blind_guess)])
    return "".join(parts) + subtitle("What an attacker guesses who sees nothing") + guess


def _figures(report: SplitReport) -> str:
    rows = [
        _row(str(i), split, scores)
        for i, split in enumerate(report.splits, start=1)
        for scores in split.attacks
    ]
    return table(HEADER, rows)


HEADER = (
    "split", "attack", "SSIM", "PSNR", "explained", "identification", "seeds", "processor time",
)  # fmt: skip


def _row(number: str, split: SplitScores, scores: AttackScores) -> tuple[str, ...]:
    return (
        f"{number} {split.name}", TITLES[scores.attack], _interval(scores.ssim),
        _interval(scores.psnr, ".1f"), _rate(scores.explained), _rate(scores.identification),
        str(scores.seeds), f"{scores.cpu_s:,.0f} s",
    )  # fmt: skip


def _controls(report: SplitReport) -> str:
    said = (
        f"Where an attack reads the input itself it has to identify {LEAST_FOUND:.0%} of the "
        "images. Behind one-time pads it must not find more than chance (binomial test, "
        f"p < {SIGNIFICANCE:g}). Every other attack has to beat ridge regression on some split. "
        "One that fails is broken, and the rule accepts nothing."
    )
    rows = [_row("control:", report.input_control, one) for one in report.input_control.attacks]
    rows += [
        ("one-time pads", *_row("", report.blinded_control, one)[1:])
        for one in report.blinded_control.attacks
    ]
    broken = [paragraph(f"Broken: {name}: {why}.", kind="warn")
              for name, why in report.broken.items()]  # fmt: skip
    held = paragraph("No attack is broken.") if not broken and not report.flaws else ""
    return paragraph(said) + "".join(broken) + held + table(HEADER, rows)


def _settings(report: SplitReport) -> str:
    places = (report.input_control, report.blinded_control, *report.splits)
    spent = sum(scores.cpu_s for place in places for scores in place.attacks)
    rows = [
        ("model", report.model),
        ("SHA-256 of the model", report.model_sha256),
        ("images", f"{report.data}: {report.images:,} attacked, {report.public:,} public"),
        ("SHA-256 of the images", report.data_sha256),
        ("SHA-256 of the report", report.digest.hex()),
        ("candidates", f"{report.candidates} (the rule needs {CANDIDATES})"),
        ("processor time of the attacks", f"{spent:,.0f} s"),
        *((name, _plain(value)) for name, value in report.settings.items()),
        ("versions", ", ".join(f"{name} {number}" for name, number in report.versions.items())),
    ]
    return table(("", ""), rows)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _attacks(report: SplitReport) -> list[str]:
    places = _places(report)
    return [name for name in ATTACKS if any(place.attack(name) for place in places)]


def _places(report: SplitReport) -> tuple[SplitScores, ...]:
    """Where the curves have points."""
    return (report.input_control, *report.splits)


def _interval(found: Estimate, form: str = ".3f") -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def _rate(found: Estimate) -> str:
    return f"{found.mean:.1%} ({found.low:.1%} to {found.high:.1%})"
