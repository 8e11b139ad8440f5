"""The page of `cloister audit training`: originals beside the reconstructions of each attack."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8

from cloister.audit.training.evidence import Evidence
from cloister.audit.training.judge import Judged, overall
from cloister.audit.training.prior import Prior
from cloister.audit.training.score import (
    APPROXIMATED_GAIN_DB,
    APPROXIMATED_LABELS,
    RECOVERED_DB,
    RECOVERED_GAIN_DB,
    RECOVERED_LABELS,
)
from cloister.audit.training.truth import Truth
from cloister.data.info import Targets
from cloister.pages.page import Section, page, paragraph, png, table

SHOWN = 8
LEAD = (
    "The cryptography hides everything except the messages to a party: the function values that "
    "were released to it, and the functions that it was asked for. These attacks use nothing else."
)
WORDS = {
    "recovered": "The messages to this party give the training data away.",
    "approximated": "No attack was exact, but pictures or labels come out better than a guess. "
    "People may be recognisable.",
    "not scored": "The log does not determine the data by itself. Give --truth to learn how close "
    "the attacks came.",
    "not recovered": "No attack here did noticeably better than guessing without the log.",
    "not attempted": "No attack here could run on this log; the table says why. That is no sign of "
    "safety.",
    "nothing to attack": "Nothing in this log depends on a sample, if the one function in it is "
    "public. Weights that were trained before are not.",
}
KINDS = {
    "recovered": "bad", "approximated": "caution", "not scored": "caution",
    "not attempted": "caution",
    "not recovered": "good", "nothing to attack": "good",
}  # fmt: skip
"""How loud the page says a verdict: a class of the style sheet."""
COLUMNS = ("attack", "verdict", "samples", "score", "best guess", "exact", "worked with")
TARGETS: Mapping[Targets, str] = {
    "classes": "the labels away, up to the names of the classes",
    "labels": "the labels away, up to their order",
    "numbers": "the numbers to learn away, as parts of their public ranges",
}
"""What messages with targets give, by their kind."""
EMPTY = (
    "Nothing was released to the training server; nothing to attack. Other logs hold the requests "
    "to a ciphertext host and to the authority: `cloister data serve --log`, "
    "`cloister train --request-log`."
)
ASSUMED = (
    "Changes of weights were read as those of SGD: under another optimiser, such as Adam, it is no "
    "sign of safety that they gave no sample."
)
LIMITS = (
    "A failed attack proves nothing: better priors (generative models of the same kind of data) "
    "reconstruct from fewer values than these attacks need. Proven is the ledger's bound on the "
    "number of independent values that were released; tested is that these attacks stop working "
    "below it."
)


def conclusion(judged: Sequence[Judged], evidence: Evidence | None) -> str:
    """The meaning of the verdict, and the attacks that it does not cover."""
    if evidence is None:
        return EMPTY
    assumed = ""
    if any(one.finding.among is not None and one.verdict == "not recovered" for one in judged):
        assumed = f" {ASSUMED}"
    left = [one.finding.attack for one in judged if one.verdict == "not attempted"]
    verdict = overall(judged)
    meaning, values = WORDS[verdict], [one for one in judged if one.finding.attack != "labels"]
    if verdict == "recovered" and (verdict := overall(values)) != "recovered":
        more = f" {WORDS[verdict]}" if verdict in ("approximated", "not scored") else ""
        meaning = (
            f"The messages to this party give {TARGETS[evidence.targets]}. No attack here "
            f"recovered a sample's values.{more}"
        )
    if verdict == "recovered" or not left:
        return meaning + assumed
    return f"{meaning} Not attempted: {', '.join(left)}.{assumed}"


def thresholds() -> str:
    """The stated rule of every verdict, for people."""
    return (
        f"Recovered: at least {RECOVERED_DB:g} dB, and {RECOVERED_GAIN_DB:g} dB better than the "
        f"best guess without the log. Approximated: {APPROXIMATED_GAIN_DB:g} dB better than that "
        f"guess. Labels, and numbers to learn: {RECOVERED_LABELS:.0%} and "
        f"{APPROXIMATED_LABELS:.0%} of what always saying the commonest gets wrong, under the best "
        "renaming of classes and the best order of labels. What was asked tells samples up to a "
        "factor and an offset, and is scored under the best ones."
    )


def severity(judged: Sequence[Judged], evidence: Evidence | None) -> str:
    """How many samples the verdict is about: those of the attack that recovered most."""
    if evidence is None:
        return ""
    counts = [(_recovered(one), len(one.finding.ids), one.finding.attack) for one in judged]
    values = [c for c, one in zip(counts, judged, strict=True) if not one.finding.labels]
    recovered, tried, attack = max(values, default=(0, 0, ""))
    seen = f"the log concerns {len(evidence.seen):,} samples"
    if not recovered:
        return f"Samples whose values are recovered: none; {seen}."
    return (
        f"Samples whose values are recovered: {recovered:,} of {tried:,} tried ({attack}); {seen}."
    )


def _recovered(one: Judged) -> int:
    """Samples that an attack recovered: by the truth, or because the log admits no others."""
    certain = one.finding.certain
    sure = 0 if certain is None else int(certain.all(axis=1).sum())
    return max(sure, 0 if one.score is None else one.score.recovered)


def score_rows(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Attack, verdict, recovered samples, score, best guess, share of exact elements, basis."""
    rows: list[tuple[str, ...]] = []
    for one in judged:
        value = guess = exact = count = ""
        if len(one.finding.ids) and (one.score is not None or one.finding.certain is not None):
            count = f"{_recovered(one):,} of {len(one.finding.ids):,}"
        if one.score is not None:
            decibels = one.score.unit == "dB"
            value, guess = (
                f"{number:.1f} dB" if decibels else f"{number:.1%}"
                for number in (one.score.value, one.score.guess)
            )
            exact = f"{one.score.exact:.1%}"
        rows.append((one.finding.attack, one.verdict, count, value, guess, exact, one.finding.note))
    return rows


def encrypted_page(
    judged: Sequence[Judged], evidence: Evidence | None, prior: Prior, *, truth: Truth | None
) -> str:
    """The whole document."""
    verdict = overall(judged)
    counts = {} if evidence is None else evidence.counts
    seen = 0 if evidence is None else len(evidence.seen)
    released = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
    sections = [
        Section(
            f"Verdict: {verdict}",
            paragraph(conclusion(judged, evidence), kind=KINDS[verdict])
            + paragraph(severity(judged, evidence))
            + paragraph(f"In the log: {released}; samples concerned: {seen}."),
        ),
        Section(
            "Attacks", table(COLUMNS, score_rows(judged)) + paragraph(thresholds(), kind="soft")
        ),
    ]
    shown = _pictures(judged, prior, truth)
    if shown:
        sections.append(Section("Reconstructions", shown))
    sections.append(Section("Limits", paragraph(LIMITS)))
    return page("What encrypted training released", LEAD, sections)


def _pictures(judged: Sequence[Judged], prior: Prior, truth: Truth | None) -> str:
    """One row per sample, one column per attack that produced images."""
    shown = [one for one in judged if len(one.finding.ids) and not one.finding.labels]
    if not shown:
        return ""
    ids = list(dict.fromkeys(int(i) for one in shown for i in one.finding.ids))[:SHOWN]
    header = ["sample", *(["original"] if truth else []), *(one.finding.attack for one in shown)]
    rows: list[list[str | bytes]] = []
    for sample in ids:
        row: list[str | bytes] = [f"sample {sample}"]
        if truth is not None:
            at = int(truth.places(np.array([sample]))[0])
            row.append(png(_picture(truth.x[at], prior)) if at >= 0 else "unknown")
        for one in shown:
            where = np.flatnonzero(one.finding.ids == sample)
            found = one.finding.x[where[0]] if len(where) else None
            row.append("" if found is None else png(_picture(found, prior)))
        rows.append(row)
    return table(header, rows, large=True)


def _picture(x: np.ndarray, prior: Prior) -> UInt8[np.ndarray, "h w ..."]:
    """A flattened sample over the range of the encoding: in colour, or grey of its first channel.

    A row of a table is a strip with a cell for each column.
    """
    values = x.reshape(prior.shape)
    if prior.shape[:2] == (1, 1):
        values = values.reshape(1, -1, 1)
    shown = values if values.shape[2] == 3 else values[..., 0]
    scaled = (shown - prior.low) * (255.0 / (prior.high - prior.low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)
