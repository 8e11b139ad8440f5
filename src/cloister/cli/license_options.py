"""Options of runs whose outputs a ticket buys."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from cloister.attest.clock import SYSTEM_CLOCK
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_header import BundleHeader
from cloister.bundle.bundle_keys import load_content_key, load_vendor
from cloister.cli import options
from cloister.errors import InputError
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.local_meter import local_meter_key
from cloister.tickets.receipt_files import save_receipt
from cloister.tickets.ticket import Ticket
from cloister.tickets.ticket_meter import TicketMeter
from cloister.trusted.metered_session import MeteredResult

TICKETS = "Tickets: outputs that are bought"
RECEIPTS = "receipts"
"""The folder of receipts, in that of the meter."""

TicketFile = Annotated[
    Path | None,
    typer.Option(
        "--ticket", metavar="FILE.lic", help="What buys the outputs of a bundle.",
        rich_help_panel=TICKETS,
    ),
]  # fmt: skip
MeterFolder = Annotated[
    Path | None,
    typer.Option(
        "--meter",
        metavar="DIR",
        help="The meter of --ticket, with its receipts; made if it is not there.",
        rich_help_panel=TICKETS,
    ),
]
FileCounter = Annotated[
    Path | None,
    typer.Option(
        "--insecure-file-counter",
        metavar="FILE",
        help="For tests: a counter that anyone who can write the file can put back.",
        rich_help_panel=TICKETS,
    ),
]


@dataclass(frozen=True)
class License:
    """What meters a run."""

    ticket: TicketFile = None
    meter: MeterFolder = None
    insecure_file_counter: FileCounter = None

    def open(
        self, bundle: BundleHeader, *, vendor: Path | None, key: Path | None
    ) -> TicketMeter | None:
        """The meter of a bundle's outputs; None: no ticket is given.

        Raises   InputError for options that are missing, TicketError, MeterError
        """
        if self.ticket is None:
            self.refuse_any("goes with --ticket; give that too, or leave it out")
            return None
        if self.meter is None or vendor is None or key is None:
            raise InputError(
                f"--ticket {self.ticket}: give --meter DIR, where it is spent, and --vendor and "
                "--key of the bundle"
            )
        ticket = Ticket.read(self.ticket, vendor=load_vendor(vendor))
        if self.insecure_file_counter is None:
            raise InputError(
                f"--ticket {self.ticket}: is metered by a counter of kind {ticket.counter.kind}; "
                "name the counter"
            )
        return TicketMeter.open(
            self.meter,
            ticket,
            bundle=bundle,
            key=local_meter_key(load_content_key(key), ticket),
            counter=InsecureFileCounter.open(self.insecure_file_counter),
            clock=SYSTEM_CLOCK,
            rng=SystemRandom(),
        )

    def save(self, result: MeteredResult) -> Path:
        """Write the receipt of a run.

        Raises   InputError
        """
        if self.meter is None:
            raise InputError("--meter: a receipt lies in the meter's folder; name it")
        return save_receipt(self.meter / RECEIPTS, result.receipt, result.opening)

    def refuse_any(self, why: str) -> None:
        """Refuse all of these options.

        Raises   InputError naming the first
        """
        given = {f"--{f.name.replace('_', '-')}": getattr(self, f.name) for f in fields(self)}
        options.refuse_given(why, given)
