"""Options of runs whose outputs a ticket buys."""

from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from cloister.attest.clock import SYSTEM_CLOCK
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.tpm_commands import DEVICE
from cloister.base.rng import Csprng, SystemRandom
from cloister.broker.broker_client import BrokerClient
from cloister.broker.lease_counter import LeaseCounter, meter_id
from cloister.bundle.bundle_header import BundleHeader
from cloister.bundle.bundle_keys import load_content_key, load_vendor
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.cli import options
from cloister.cli.attester_options import attester_of
from cloister.errors import InputError
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.local_meter import local_meter_key
from cloister.tickets.monotonic_counter import MonotonicCounter
from cloister.tickets.receipt_files import save_receipt
from cloister.tickets.ticket import KIND, CounterKind, Ticket, read_document
from cloister.tickets.ticket_meter import TicketMeter
from cloister.tickets.tpm_counter import TpmCounter
from cloister.trusted.metered_session import MeteredResult

TICKETS = "Tickets: outputs that are bought"
RECEIPTS = "receipts"
"""The folder of receipts, in that of the meter."""
RELEASED = "key released by entry {entry} of the broker's ledger, {digest}"
"""What `cloister broker ledger --entry` can be asked for."""

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
BrokerUrl = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="URL",
        help="The vendor's key broker, which releases the bundle's key. The process starts itself "
        "anew with an empty environment, and proves this machine to the broker.",
        rich_help_panel=TICKETS,
    ),
]
CountingTpm = Annotated[
    Path | None,
    typer.Option(
        "--tpm",
        metavar="PATH",
        help="The TPM whose counter the ticket names: its device, or the socket of a program that "
        "plays one. Default: /dev/tpmrm0.",
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
    broker: BrokerUrl = None
    tpm: CountingTpm = None
    insecure_file_counter: FileCounter = None

    def client(
        self, bundle: str, *, vendor: Path | None, key: Path | None, machine: Path | None
    ) -> BrokerClient | None:
        """A connection to the broker that releases the keys; None: a key file is given.

        machine   the key of a machine that is played

        Raises   InputError for options that are missing, TicketError, AttestationError where
                 nothing proves this machine
        """
        if self.broker is None:
            return None
        options.refuse_given("the broker releases the key; leave it out", {"--key": key})
        if self.ticket is None or self.meter is None or vendor is None:
            raise InputError(
                f"--broker {self.broker}: give --ticket FILE, --meter DIR, where it is spent, and "
                "--vendor of the bundle"
            )
        public, rng = load_vendor(vendor), SystemRandom()
        ticket = Ticket.read(self.ticket, vendor=public)
        header = SealedBundle.show(Path(bundle))
        # Before the broker counts a release: a key of another bundle would be of no use.
        ticket.require_bundle(header.bundle_id, vendor=header.vendor)
        manifest = RuntimeManifest.of_this_process(
            version("cloister"),
            bundle=ticket.bundle_id.hex(),
            vendor=ticket.vendor.hex(),
            license=ticket.license,
        )
        return BrokerClient(
            self.broker,
            read_document(self.ticket, KIND),
            vendor=public,
            attester=attester_of(machine, rng=rng),
            manifest=manifest.to_bytes(),
            meter=meter_id(self.meter, ticket, rng=rng),
            rng=rng,
        )

    def open(
        self,
        bundle: BundleHeader,
        *,
        vendor: Path | None,
        key: Path | None,
        client: BrokerClient | None,
    ) -> TicketMeter | None:
        """The meter of a bundle's outputs; None: no ticket is given.

        client   of the broker that released the keys; None: the content key is in a file

        Raises   InputError for options that are missing, TicketError, MeterError
        """
        if self.ticket is None:
            self.refuse_any("goes with --ticket; give that too, or leave it out")
            return None
        missing = InputError(
            f"--ticket {self.ticket}: give --meter DIR, where it is spent, and --vendor and --key "
            "of the bundle, or --broker URL"
        )
        if self.meter is None:
            raise missing
        rng = SystemRandom()
        if client is not None:
            ticket, meter_key = client.ticket, client.release().meter_key
        elif vendor is not None and key is not None:
            ticket = Ticket.read(self.ticket, vendor=load_vendor(vendor))
            meter_key = local_meter_key(load_content_key(key), ticket)
        else:
            raise missing
        return TicketMeter.open(
            self.meter,
            ticket,
            bundle=bundle,
            key=meter_key,
            counter=self._counter(ticket, client, rng=rng),
            clock=SYSTEM_CLOCK,
            rng=rng,
        )

    def _counter(
        self, ticket: Ticket, client: BrokerClient | None, *, rng: Csprng
    ) -> MonotonicCounter:
        if self.tpm is not None:
            options.refuse_given(
                "goes with no --tpm; one counter meters a ticket",
                {"--insecure-file-counter": self.insecure_file_counter},
            )
            return TpmCounter.open(self.tpm, rng=rng)
        if self.insecure_file_counter is not None:
            return InsecureFileCounter.open(self.insecure_file_counter)
        if client is not None and ticket.counter.kind is CounterKind.LEASE:
            return LeaseCounter(client)
        if ticket.counter.kind is CounterKind.TPM:
            return TpmCounter.open(Path("/") / DEVICE, rng=rng)
        raise InputError(
            f"--ticket {self.ticket}: is metered by a counter of kind {ticket.counter.kind}; "
            "name the counter"
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
