"""The page of the demo of a rented classifier: who saw what, the receipt and the refusals."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cloister.audit.input.exposure import stretched
from cloister.examples.attested_demo import CODE, QUOTA, AttestedOutcome
from cloister.examples.digits_page import claims_table, save_page
from cloister.pages.page import Section, page, paragraph, png, preformatted, table

SEEN = (
    ("vendor", "its own model; the broker's ledger: which chip and code got the key, under which "
     "licence", "digits, answers"),
    ("broker", "evidence, ticket, and how many answers were spent", "digits, answers"),
    ("operator of the machine", "the sealed bundle, the open layers, the sizes and times of "
     "messages", "hidden weights, the content key, digits, answers"),
    ("network", "the sizes and times of messages", "digits, answers, evidence"),
    ("customer", "the label of each digit, and a receipt", "hidden weights, scores"),
)  # fmt: skip
"""Rows (party, saw, did not see)."""
HONEST = (
    "The machines here are played: a program signs their evidence with a key in a file. Nothing "
    "of this run is rooted in hardware, and every report of it says so.",
    "On a confidential machine the evidence is signed by its processor. Whoever can open the "
    "machine and tap its memory bus is out of every vendor's scope; a policy can list chips.",
    "The sizes and times of messages are visible to the operator and to the network.",
)
"""What the demonstration does not show."""


def write_attested_page(outcome: AttestedOutcome, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    return save_page(_page(outcome), folder)


def facts(outcome: AttestedOutcome) -> list[tuple[str, str]]:
    """Rows (name, value) for people."""
    same = int((outcome.answers == outcome.vendor_answers).sum())
    receipt = outcome.receipt
    return [
        ("digits", f"{len(outcome.answers)}, {same} answered as by the vendor"),
        ("code that answered", f"measurement {CODE[:16]}, as the policy asks"),
        ("hardware rooted", "yes" if outcome.appraisal["hardware_rooted"] else "no: played"),
        ("receipt", receipt_text(receipt)),
        ("answers left", f"0 of {QUOTA}"),
    ]


def receipt_text(receipt: Mapping[str, object]) -> str:
    """A receipt in one line."""
    first, count = int(str(receipt["first"])), int(str(receipt["count"]))
    at = datetime.fromtimestamp(int(str(receipt["time"])), UTC)
    return (
        f"licence {receipt['license']}: serials {first} to {first + count - 1}, each as "
        f"{receipt['outputs']}, at {at:%Y-%m-%d %H:%M} UTC; signed by {str(receipt['signer'])[:16]}"
    )


def refusal_rows(outcome: AttestedOutcome) -> list[tuple[str, str, str]]:
    """Rows (attempt, who refused, reason)."""
    return [(one.attempt, one.by, one.reason) for one in outcome.refusals]


def looked_rows(outcome: AttestedOutcome) -> list[tuple[str, ...]]:
    """Rows (place, bytes, and how often each secret was found)."""
    return [
        (one.place, f"{one.nbytes:,}", *(f"{count:,}" for count in one.found.values()))
        for one in outcome.looked
    ]


def looked_columns(outcome: AttestedOutcome) -> tuple[str, ...]:
    """Titles of `looked_rows`."""
    return ("searched", "bytes", *outcome.looked[0].found)


def _page(outcome: AttestedOutcome) -> str:
    return page(
        "A rented classifier",
        "A vendor rents out a classifier with hidden layers. A machine proves what it runs before "
        "it gets the key, and again before it gets a digit.",
        [
            Section("The run", table(("", ""), facts(outcome)) + _pictures(outcome)),
            Section("Who saw what", table(("", "saw", "did not see"), SEEN)),
            Section("The search for secrets", _looked(outcome)),
            Section("Four refusals", _refused(outcome)),
            Section("The broker's ledger", _ledger(outcome)),
            Section("The commands", _commands(outcome)),
            Section("What this does not show", "".join(map(paragraph, HONEST))),
            Section("Claims and their assumptions", claims_table(outcome.claims)),
        ],
    )


def _pictures(outcome: AttestedOutcome) -> str:
    rows: list[tuple[str | bytes, ...]] = [
        ("the customer's input", *(png(one) for one in stretched(outcome.images[:, 0]))),
        ("label", *map(str, outcome.answers)),
    ]
    return table([""] * (len(outcome.answers) + 1), rows)


def _looked(outcome: AttestedOutcome) -> str:
    note = "Files or messages with a key, rows of the digits that occur, and words of two "
    note += "neighbouring hidden weights, at every byte offset. The broker has the bundle's key, "
    note += "the customer the digits, and the vendor the rest: the same search finds them there."
    columns = looked_columns(outcome)
    return table(columns, looked_rows(outcome)) + paragraph(note, kind="soft")


def _refused(outcome: AttestedOutcome) -> str:
    return "".join(
        paragraph(f"{attempt}; refused by the {by}:") + paragraph(reason, kind="warn")
        for attempt, by, reason in refusal_rows(outcome)
    )


def _ledger(outcome: AttestedOutcome) -> str:
    entries = outcome.ledger["entries"]
    rows = [(str(one.get("number", "")), str(one.get("kind", "")), _fields(one)) for one in entries]
    return table(("entry", "what", ""), rows)


def _fields(entry: Mapping[str, object]) -> str:
    shown = ("license", "bundle", "format", "measurement", "chip")
    inner = entry.get("fields")
    fields = inner if isinstance(inner, Mapping) else entry
    return ", ".join(f"{name} {str(fields[name])[:16]}" for name in shown if name in fields)


def _commands(outcome: AttestedOutcome) -> str:
    lines = [f"{who:9} $ {line}" for who, line in outcome.commands]
    return preformatted("\n".join(lines))
