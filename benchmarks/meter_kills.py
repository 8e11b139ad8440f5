"""kill -9 at random moments of metered runs: is an output free, is one sold twice, does it open?

One or two processes open the meter of a ticket and release outputs, a few at a time, without end.
Each notes an output when it is released, not before. They are killed after a random time, or at a
random line of the code that spends, and the meter is opened again: first with the ledger from
before, which has to give no output back. Where the quota is used up, the next ticket begins with a
new meter.
"""

import contextlib
import dataclasses
import os
import random
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.environment import environment
from cloister.attest.clock import Clock
from cloister.base.rng import SystemRandom
from cloister.bundle.bundle_header import BundleHeader
from cloister.cli.console import progress
from cloister.errors import BudgetError, CloisterError
from cloister.tickets.insecure_file_counter import InsecureFileCounter
from cloister.tickets.output_release import OPENING_BYTES, commitment, released
from cloister.tickets.ticket import CounterKind, CounterRule, OutputMode, Ticket
from cloister.tickets.ticket_meter import LEDGER, TicketMeter

SIGNER = Ed25519PrivateKey.generate()
KEY = secrets.token_bytes(32)
QUOTA, MOST_AT_ONCE = 60, 4
LONGEST_S = 0.15
SPENDING = (
    "ticket_meter.py", "receipt_ledger.py", "insecure_file_counter.py", "database_kind.py",
    "sqlite.py", "output_release.py",
)  # fmt: skip
LINES = 900
"""Of these files, from the first opening on; a spend has about 150."""
BUNDLE = BundleHeader(
    bundle_id=bytes(16), version=1, vendor=SIGNER.public_key().public_bytes_raw(),
    plan_digest=bytes(32), plan_bytes=1, module_digest=bytes(32), hidden_bytes=1, chunk_bytes=64,
    sealed_digest=bytes(32),
)  # fmt: skip


def new_ticket(number: int) -> Ticket:
    return Ticket(
        license=f"kills-{number}",
        bundle_id=BUNDLE.bundle_id,
        vendor=BUNDLE.vendor,
        first_serial=1 + number * QUOTA,
        last_serial=(1 + number) * QUOTA,
        quota=QUOTA,
        not_before=0,
        not_after=2**35,
        outputs=OutputMode.LABEL,
        top=None,
        broker=None,
        counter=CounterRule(CounterKind.INSECURE_FILE),
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """The files of a ticket."""

    folder: Path
    ticket: Ticket

    @property
    def counter(self) -> InsecureFileCounter:
        return InsecureFileCounter.open(self.folder / "counter")

    def meter(self) -> TicketMeter:
        return TicketMeter.open(
            self.folder / "meter", self.ticket, bundle=BUNDLE, key=KEY, counter=self.counter,
            clock=Clock(), rng=SystemRandom(),
        )  # fmt: skip

    def release(self, log: int) -> None:
        """Outputs without end, until killed or the quota is used up."""
        meter, draw = self.meter(), random.Random()
        while True:
            count = draw.randint(1, MOST_AT_ONCE)
            scores = np.eye(10, dtype=np.float32)[np.arange(count)]
            outputs = released({"y": scores}, self.ticket.outputs, top=None, count=count)
            opening = SystemRandom().random_bytes(OPENING_BYTES)
            try:
                spent = meter.spend(count, commitment(outputs, opening))
            except BudgetError:
                return
            # From here on the customer has them.
            os.write(log, b"".join(b"%d\n" % serial for serial in spent.receipt.serials))


def killed(work: Callable[[], None], *, at_line: int | None) -> tuple[int, bool]:
    """Run work in a child that dies at a line; its id, and whether it has to be killed."""
    child = os.fork()
    if child:
        return child, at_line is None
    try:
        if at_line is not None:
            sys.settrace(_dying_at(at_line))
        work()
    except BaseException as error:  # noqa: BLE001  (the parent reads it)
        os.write(2, f"child: {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def _dying_at(line: int) -> Callable[..., object]:
    left = line

    def trace(frame, event, _):
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in SPENDING:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


@dataclasses.dataclass
class Found:
    """What the kills did."""

    kills: int = 0
    ended_before_the_kill: int = 0
    failed: int = 0
    tickets: int = 0
    between_ledger_and_counter: int = 0
    within_a_commit: int = 0
    outputs_released: int = 0
    outputs_spent: int = 0
    outputs_beyond_a_quota: int = 0
    outputs_without_an_entry: int = 0
    serials_released_twice: int = 0
    times_a_meter_did_not_open: int = 0
    old_ledgers_tried: int = 0
    old_ledgers_that_gave_outputs_back: int = 0

    def strike(self, place: Place, log: int, draw: random.Random) -> int:
        """Kill one or two processes at once, then open the meter; outputs that are left."""
        ledger, old, children = place.folder / "meter" / LEDGER, b"", []
        if ledger.exists():
            old = ledger.read_bytes()
        for _ in range(draw.choice((1, 1, 2))):
            line = draw.choice((None, draw.randint(1, LINES)))
            children.append(killed(lambda: place.release(log), at_line=line))
        if any(timed for _, timed in children):
            time.sleep(draw.random() * LONGEST_S)
        for child, timed in children:
            if timed:
                os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self.kills += code == -signal.SIGKILL
            self.ended_before_the_kill += code == 0
            self.failed += code == 1
        journal = ledger.with_name(f"{LEDGER}-journal")
        self.within_a_commit += journal.exists()
        if old and not journal.exists():
            self.put_back(place, ledger, old)
        try:
            before = place.counter.read()
            left = place.meter().left()
        except CloisterError as error:
            print(f"meter: {error}", file=sys.stderr)
            self.times_a_meter_did_not_open += 1
            return 0
        self.between_ledger_and_counter += place.counter.read() > before
        return left

    def put_back(self, place: Place, ledger: Path, old: bytes) -> None:
        """Open the meter with an old ledger; the new one is there again afterwards."""
        new, serials = ledger.read_bytes(), (place.folder / "log").read_text().split()
        ledger.write_bytes(old)
        self.old_ledgers_tried += old != new
        try:
            left = place.meter().left()
        except CloisterError:
            left = 0
        unsold = place.ticket.last_serial - max(map(int, serials), default=0)
        self.old_ledgers_that_gave_outputs_back += left > unsold
        ledger.write_bytes(new)

    def settle(self, place: Place, log: Path) -> None:
        """Compare what a ticket's customers got with what was spent."""
        serials = Counter(map(int, log.read_text().split()))
        entries: set[int] = set()
        with contextlib.suppress(CloisterError):
            for one in place.meter().receipts():
                entries.update(one.receipt.serials)
        self.tickets += 1
        self.outputs_released += serials.total()
        self.outputs_spent += len(entries)
        self.outputs_beyond_a_quota += max(serials.total() - place.ticket.quota, 0)
        self.outputs_without_an_entry += len(set(serials) - entries)
        self.serials_released_twice += sum(count > 1 for count in serials.values())


def measure(
    kills: Annotated[int, typer.Option("--kills", min=1)] = 200,
    seed: Annotated[int | None, typer.Option(help="Of the moments. Default: drawn.")] = None,
) -> dict[str, object]:
    """Outputs released and spent, and how often anything went wrong."""
    seed = secrets.randbits(32) if seed is None else seed
    draw, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory() as root, progress("kills") as update:
        while found.kills < kills and found.failed + found.times_a_meter_did_not_open < kills:
            place = Place(Path(root) / str(found.tickets), new_ticket(found.tickets))
            place.folder.mkdir()
            path = place.folder / "log"
            log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            while found.kills < kills and found.strike(place, log, draw):
                update(min(found.kills, kills), kills)
            os.close(log)
            found.settle(place, path)
    return {"seed": seed, **dataclasses.asdict(found), **environment()}


FAULTS = (
    "outputs_beyond_a_quota", "outputs_without_an_entry", "serials_released_twice",
    "times_a_meter_did_not_open", "old_ledgers_that_gave_outputs_back", "failed",
)  # fmt: skip


def faults(found: dict[str, object]) -> int:
    """Outputs that were free or sold twice, meters that did not open, children that failed."""
    return sum(found[name] for name in FAULTS)
