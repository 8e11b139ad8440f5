"""The page of the demo of digits: the worker's view, the results and the claims."""

from dataclasses import asdict
from pathlib import Path

from cloister.audit.input.exposure import stretched
from cloister.base import files
from cloister.errors import InputError
from cloister.examples.digits_demo import FEWEST, Outcome, facts, stages
from cloister.pages.page import Section, histogram, page, paragraph, png, preformatted, table
from cloister.plan.claims import Claims
from cloister.trusted.report import Report

SHOWN = FEWEST
PAGE_NAME = "index.html"


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    return save_page(_page(outcome), folder)


def save_page(text: str, folder: Path) -> Path:
    """Write a page; its path.

    Raises   InputError when the folder cannot be written
    """
    path = folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode(), private=False)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; choose another folder") from error
    return path


def _page(outcome: Outcome) -> str:
    return page(
        "Cloister demo",
        "A small network reads handwritten digits. Its convolutions and its dense layer ran in "
        "another process that is not trusted; it saw noise, and every answer it gave was checked.",
        [
            Section("The worker's view", _pictures(outcome)),
            Section("The bytes it was sent", _histograms(outcome)),
            Section("The result", table(("", ""), facts(outcome))),
            Section("Where the time went", _times(outcome.report)),
            Section("Claims and their assumptions", claims_table(outcome.claims)),
            Section("A worker that lies", _refused(outcome.refusal)),
        ],
    )


def _pictures(outcome: Outcome) -> str:
    own = stretched(outcome.digits.held_out[:SHOWN, 0])
    rows: list[tuple[str | bytes, ...]] = [
        ("your input", *(png(one) for one in own)),
        ("the worker saw", *(png(one) for one in outcome.seen[0].pictures[:SHOWN])),
        (
            "without pads it sees",
            *(png(one) for one in outcome.seen_without_pads.pictures[:SHOWN]),
        ),
        ("answer", *(str(answer) for answer in outcome.private[:SHOWN])),
    ]
    return table([""] * (SHOWN + 1), rows) + paragraph(
        "Second row: the first layer's request as it left the trusted side, the top byte of each "
        "32-bit word as a grey value. Third row: the same request under the policy that checks "
        "answers but hides nothing.",
        kind="soft",
    )


def _histograms(outcome: Outcome) -> str:
    node, blinded, plain = outcome.nodes[0], outcome.seen[0], outcome.seen_without_pads
    tested = table(
        ("layer", "chi-square, 255 degrees of freedom", "p"),
        (
            (name, f"{shown.uniformity.statistic:.1f}", shown.uniformity.p_text)
            for name, shown in zip(outcome.nodes, outcome.seen, strict=True)
        ),
    )
    return (
        histogram(blinded.histogram, f"{node}, blinded: p {blinded.uniformity.p_text}")
        + histogram(plain.histogram, f"{node} without pads: p {plain.uniformity.p_text}")
        + tested
        + paragraph(
            "A uniform histogram is a sign of hiding, not a proof. The proof: the request is x + r "
            "modulo 2^32 with r uniform and used once, so it is independent of x.",
            kind="soft",
        )
    )


def _times(report: Report) -> str:
    layers = table(
        ("step", "protection", "trusted ms", "worker ms", "sent KiB", "received KiB"),
        [
            (
                row.name,
                row.protection,
                f"{row.trusted_ms / report.inputs:.3f}",
                f"{row.worker_ms / report.inputs:.3f}",
                f"{row.bytes_to_worker / report.inputs / 1024:.2f}",
                f"{row.bytes_from_worker / report.inputs / 1024:.2f}",
            )
            for row in report.layers
        ],
    )
    timed = table(("stage", "ms per input", ""), stages(report))
    note = "A network this small costs less than the messages about it; the demo shows hiding and "
    note += "checking, not a speed-up. All numbers are per input."
    return timed + layers + paragraph(note, kind="soft")


def claims_table(claims: Claims) -> str:
    """Who learns what, and can do what."""
    columns = ("role", "", "about", "extent", "", "strength", "assuming")
    rows = [tuple(map(str, asdict(statement).values())) for statement in claims.statements]
    return table(columns, rows)


def _refused(refusal: str) -> str:
    return (
        paragraph("A second worker changed one number of one answer. The session raised:")
        + paragraph(f"VerificationError: {refusal}", kind="warn")
        + preformatted("released to the caller: nothing")
    )
