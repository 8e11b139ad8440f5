"""`cloister license`: tickets that a vendor issues, and the receipts of those that were spent."""

from dataclasses import asdict
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from cloister.attest.tpm_commands import DEVICE
from cloister.base import files
from cloister.base.reading import parsing
from cloister.base.rng import SystemRandom
from cloister.bundle import bundle_keys
from cloister.bundle.bundle_header import DIGEST_BYTES
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli import options
from cloister.cli.console import emit_json, out
from cloister.errors import InputError, TicketError
from cloister.tickets.local_meter import local_meter_key
from cloister.tickets.receipt import Receipt
from cloister.tickets.receipt_files import ReceiptFolder, read_receipts
from cloister.tickets.receipt_ledger import ReceiptLedger
from cloister.tickets.ticket import (
    KIND,
    SUFFIX,
    CounterKind,
    CounterRule,
    OutputMode,
    Ticket,
    read_document,
    utc,
)
from cloister.tickets.ticket_meter import LEDGER
from cloister.tickets.tpm_counter import TpmCounter

app = typer.Typer(
    help="Sell inference: issue tickets, and show what was spent.", no_args_is_help=True
)

NewTicket = Annotated[
    Path, typer.Argument(metavar=f"FILE{SUFFIX}", help="Where the ticket is written.")
]
Tickets = Annotated[list[Path], typer.Argument(metavar=f"FILE{SUFFIX}...", help="Tickets.")]
OfBundle = Annotated[
    Path, typer.Option("--bundle", metavar="FILE.bundle", help="The bundle whose outputs it buys.")
]
Signer = Annotated[
    Path, typer.Option("--signer", metavar="FILE", help="The vendor's private key, vendor.key.")
]
LicenseName = Annotated[
    str, typer.Option("--license", metavar="NAME", help="Of the licence; it may have many tickets.")
]
Quota = Annotated[
    int | None,
    typer.Option("--quota", min=1, help="Outputs in all. Default: one for each serial."),
]
Serials = Annotated[
    str | None,
    typer.Option(
        "--serials", metavar="FIRST-LAST", help="Those of its outputs. Default: 1 to the quota."
    ),
]
NotBefore = Annotated[
    str | None,
    typer.Option("--not-before", metavar="TIME", help="Such as 2026-01-31T12:00Z. Default: now."),
]
NotAfter = Annotated[
    str, typer.Option("--not-after", metavar="TIME", help="The last second, as --not-before.")
]
Outputs = Annotated[
    OutputMode, typer.Option("--outputs", help="How much of each output is released.")
]
TopClasses = Annotated[
    int | None, typer.Option("--top", min=1, help="Classes that --outputs top-k releases.")
]
Broker = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="SHA256",
        help="The certificate of the key broker, which counts unless --tpm-counter does.",
    ),
]
TpmRule = Annotated[
    str | None,
    typer.Option(
        "--tpm-counter",
        metavar="IDENTITY:VALUE",
        help="The counter of the customer's TPM, and its value now.",
    ),
]
Tpm = Annotated[
    Path,
    typer.Option(
        "--tpm", metavar="PATH", help="A TPM's device, or the socket of a program that plays one."
    ),
]  # fmt: skip
AllowFileCounter = Annotated[
    bool,
    typer.Option(
        "--insecure-file-counter",
        help="For tests: let a file count, which its owner can put back.",
    ),
]
Vendor = Annotated[
    Path | None,
    typer.Option("--vendor", metavar="FILE", help="The vendor's public key, vendor.pub."),
]
Receipts = Annotated[
    Path | None, typer.Option("--receipts", metavar="DIR", help="Receipts of the one ticket.")
]
ReceiptKey = Annotated[
    str | None,
    typer.Option(
        "--receipt-key", metavar="HEX", help="The meter's public key, from the broker's ledger."
    ),
]
Meter = Annotated[
    Path | None,
    typer.Option("--meter", metavar="DIR", help="The meter of the one ticket; with --key."),
]
ContentKey = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="The content key, of a meter without a broker."),
]


@app.command(
    epilog=f"Example: cloister license issue acme{SUFFIX} --bundle model.bundle --signer "
    "keys/vendor.key --license acme-7 --quota 1000 --not-after 2027-12-31T00:00Z --outputs label "
    "--broker 3f0c..."
)
def issue(
    to: NewTicket,
    bundle: OfBundle,
    signer: Signer,
    license_name: LicenseName,
    not_after: NotAfter,
    outputs: Outputs,
    quota: Quota = None,
    serials: Serials = None,
    not_before: NotBefore = None,
    top: TopClasses = None,
    broker: Broker = None,
    tpm_counter: TpmRule = None,
    insecure_file_counter: AllowFileCounter = False,
    json: options.Json = False,
) -> None:
    """Issue a ticket: the right to so many outputs of a bundle, until a time.

    One counter meters a ticket: the key broker's, that of one TPM, or a file for tests. Tickets of
    one licence need serials of their own; `license show` compares them.
    """
    if to.suffix != SUFFIX:
        raise InputError(f"{to}: name a {SUFFIX} file")
    private = bundle_keys.load_signer(signer)
    sealed = SealedBundle.verify(bundle, vendor=private.public_key())
    first, last = _serials(serials, quota)
    ticket = Ticket(
        license=license_name,
        bundle_id=sealed.header.bundle_id,
        vendor=sealed.header.vendor,
        first_serial=first,
        last_serial=last,
        quota=last - first + 1 if quota is None else quota,
        not_before=_seconds("--not-before", not_before),
        not_after=_seconds("--not-after", not_after),
        outputs=outputs,
        top=top,
        broker=None if broker is None else _digest("--broker", broker),
        counter=_counter(broker, tpm_counter, insecure_file_counter),
    )
    try:
        files.create(to, ticket.signed_by(private), private=True)
    except FileExistsError:
        raise InputError(f"{to}: exists already; choose another name") from None
    except OSError as error:
        raise InputError(f"{to}: {error.strerror or error}") from None
    if json:
        emit_json({"ticket": to, **_fields(ticket)})
    else:
        _show_ticket(to, ticket)


@app.command(epilog="Example: cloister license counter")
def counter(tpm: Tpm = Path("/") / DEVICE, json: options.Json = False) -> None:
    """Print the counter of this machine's TPM, for the vendor's --tpm-counter; make it if new.

    Whoever issues a ticket for it has to know that the TPM is one of hardware: a program can play
    one, and be put back.
    """
    found = TpmCounter.open(tpm, rng=SystemRandom())
    value = found.read()
    if json:
        emit_json({"identity": found.identity.hex(), "value": value})
        return
    out().print(Text(f"{found.identity.hex()}:{value}"), soft_wrap=True)


@app.command(
    epilog=f"Example: cloister license show acme{SUFFIX} --vendor vendor.pub --receipts "
    "meter/receipts"
)
def show(
    tickets: Tickets,
    vendor: Vendor = None,
    receipts: Receipts = None,
    receipt_key: ReceiptKey = None,
    meter: Meter = None,
    key: ContentKey = None,
    json: options.Json = False,
) -> None:
    """Show tickets, verify receipts of a ticket offline, and list what its meter has spent.

    Without --vendor the tickets are shown and not verified. Several tickets are refused where two
    of one licence share a serial.
    """
    if (receipts is not None or meter is not None) and (vendor is None or len(tickets) != 1):
        raise InputError("--receipts, --meter: are of one ticket; name one, and give --vendor")
    if receipt_key is not None and receipts is None:
        raise InputError("--receipt-key: verifies receipts; give --receipts DIR, or leave it out")
    if (meter is None) != (key is None):
        raise InputError("--meter and --key belong together; give both or neither")
    found = [_read(path, vendor) for path in tickets]
    _require_disjoint(list(zip(tickets, found, strict=True)))
    folder = spent = None
    if receipts is not None:
        signer = None if receipt_key is None else _digest("--receipt-key", receipt_key)
        folder = read_receipts(receipts, found[0], signer=signer)
    if meter is not None and key is not None:
        spent = _ledger(meter, found[0], bundle_keys.load_content_key(key))
    if json:
        emit_json(
            {
                "tickets": [_fields(one) for one in found],
                "verified": vendor is not None,
                "receipts": None
                if folder is None
                else _folder_fields(folder, pinned=receipt_key is not None),
                "meter": None if spent is None else [_receipt_fields(one) for one in spent],
            }
        )
        return
    for path, one in zip(tickets, found, strict=True):
        _show_ticket(path, one, verified=vendor is not None)
    if folder is not None:
        _show_receipts(folder, found[0], pinned=receipt_key is not None)
    if spent is not None:
        _show_spent(spent, found[0])


# ---- reading options


def _serials(text: str | None, quota: int | None) -> tuple[int, int]:
    if text is None:
        if quota is None:
            raise InputError("give --quota N, or --serials FIRST-LAST")
        return 1, quota
    first, dash, last = text.partition("-")
    if not (dash and _is_number(first) and _is_number(last)):
        raise InputError(f"--serials {text}: give two numbers, such as 1001-2000")
    return int(first), int(last)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _seconds(option: str, text: str | None) -> int:
    found = datetime.now(UTC) if text is None else options.read_time(option, text)
    return int(found.timestamp())


def _digest(option: str, text: str) -> bytes:
    with parsing(f"{option}: must be hexadecimal", kind=InputError):
        found = bytes.fromhex(text)
    if len(found) != DIGEST_BYTES:
        raise InputError(f"{option}: has {len(found)} bytes, and {DIGEST_BYTES} are needed")
    return found


def _counter(broker: str | None, tpm: str | None, insecure_file: bool) -> CounterRule:
    """The counter that the options name.

    Raises   InputError for none or several
    """
    if insecure_file:
        options.refuse_given(
            "goes with no --insecure-file-counter, or the broker would count too",
            {"--tpm-counter": tpm},
        )
        return CounterRule(CounterKind.INSECURE_FILE)
    if tpm is not None:
        identity, _, value = tpm.partition(":")
        if not _is_number(value):
            raise InputError(f"--tpm-counter {tpm}: give its identity, a colon and its value")
        return CounterRule(CounterKind.TPM, _digest("--tpm-counter", identity), int(value))
    if broker is None:
        raise InputError(
            "nothing meters the ticket: give --broker SHA256 or --tpm-counter IDENTITY:VALUE; "
            "--insecure-file-counter is for tests"
        )
    return CounterRule(CounterKind.LEASE, _digest("--broker", broker))


# ---- reading files


def _read(path: Path, vendor: Path | None) -> Ticket:
    if vendor is not None:
        return Ticket.read(path, vendor=bundle_keys.load_vendor(vendor))
    try:
        return Ticket.from_head(KIND.split(read_document(path, KIND))[0])
    except TicketError as error:
        raise TicketError(f"{path}: {error}") from None


def _require_disjoint(named: list[tuple[Path, Ticket]]) -> None:
    for (path, one), (other_path, other) in combinations(named, 2):
        if (
            one.license == other.license
            and one.bundle_id == other.bundle_id
            and one.first_serial <= other.last_serial
            and other.first_serial <= one.last_serial
        ):
            raise TicketError(
                f"{path}, {other_path}: licence {one.license} has serial "
                f"{max(one.first_serial, other.first_serial)} twice; issue tickets with serials of "
                "their own"
            )


def _ledger(folder: Path, ticket: Ticket, content_key: bytes) -> list[Receipt]:
    if not (folder / LEDGER).exists():
        raise InputError(f"{folder}: is no meter; it has no {LEDGER}")
    ledger = ReceiptLedger.open(
        folder / LEDGER, ticket, meter_key=local_meter_key(content_key, ticket), rng=SystemRandom()
    )
    return [receipt for receipt, _ in ledger.receipts()]


# ---- showing


def _fields(ticket: Ticket) -> dict[str, object]:
    return {**asdict(ticket), "digest": ticket.digest}


def _receipt_fields(receipt: Receipt) -> dict[str, object]:
    return {
        "number": receipt.number,
        "first": receipt.first,
        "count": receipt.count,
        "time": receipt.time,
        "digest": receipt.digest,
    }


def _folder_fields(folder: ReceiptFolder, *, pinned: bool) -> dict[str, object]:
    return {
        "signer": folder.signer,
        "signer_pinned": pinned,
        "outputs": folder.outputs,
        "gaps": [[gap.start, gap.stop - 1] for gap in folder.gaps],
        "receipts": [_receipt_fields(receipt) for receipt in folder.receipts],
    }


def _show_ticket(path: Path, ticket: Ticket, *, verified: bool = True) -> None:
    console = out()
    console.print(f"{path}{'' if verified else ': not verified'}", soft_wrap=True)
    counter = ticket.counter
    named = f" {counter.identity.hex()} from {counter.start} on" if counter.identity else ""
    classes = "" if ticket.top is None else f", the best {ticket.top} classes"
    for name, value in (
        ("licence", ticket.license),
        ("ticket", ticket.digest.hex()),
        ("bundle", ticket.bundle_id.hex()),
        ("vendor", ticket.vendor.hex()),
        ("outputs", f"{ticket.quota}, each as {ticket.outputs}{classes}"),
        ("serials", f"{ticket.first_serial} to {ticket.last_serial}"),
        ("valid", f"{utc(ticket.not_before)} to {utc(ticket.not_after)}"),
        ("broker", "none" if ticket.broker is None else ticket.broker.hex()),
        ("counter", f"{counter.kind}{named}"),
    ):
        console.print(f"{name:8} {value}", soft_wrap=True)


def _show_receipts(folder: ReceiptFolder, ticket: Ticket, *, pinned: bool) -> None:
    console = out()
    console.print()
    console.print(f"receipts {len(folder.receipts)}, of {folder.outputs} of {ticket.quota} outputs")
    for gap in folder.gaps:
        console.print(f"missing  serials {gap.start} to {gap.stop - 1}: no receipt here")
    console.print(
        f"verified: meter {folder.signer.hex()} signed every receipt; those that follow each other "
        "are one chain",
        soft_wrap=True,
    )
    if not pinned:
        console.print(
            "not verified without --receipt-key: that this meter is the runtime's", soft_wrap=True
        )


def _show_spent(receipts: list[Receipt], ticket: Ticket) -> None:
    console = out()
    console.print()
    for receipt in receipts:
        serials = f"serials {receipt.first} to {receipt.behind - 1}"
        console.print(f"spent {utc(receipt.time)}  {serials}", soft_wrap=True)
    spent = sum(receipt.count for receipt in receipts)
    console.print(f"meter    {spent} of {ticket.quota} outputs by its ledger", soft_wrap=True)
    console.print("not verified: that the ledger is not an old one; its counter says so at a run")
