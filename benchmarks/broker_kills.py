"""kill -9 at random moments of releasing keys: is anything released that the ledger forgot?

A broker process serves; played runtimes take keys in one session after another, advance leased
counters, and note each answer that they hold. The broker is killed after a random time and started
anew on the same folder, which verifies the ledger. In the end every release that a runtime holds
must be an entry of the ledger, and no counter may stand below what a runtime was told.
"""

import secrets
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.broker_process import BrokerProcess, Vendor
from cloister.broker.broker_client import BrokerClient
from cloister.broker.lease_counter import LeaseCounter
from cloister.broker.ledger_entry import EntryKind
from cloister.broker.ledger_verification import LedgerContents, read_ledger
from cloister.broker.release_ledger import FILE
from cloister.cli.console import progress
from cloister.errors import BrokerUnavailable, CloisterError

ADVANCES = 3
SESSIONS = 100
"""Of one licence: a broker releases a key so often in an hour, and not without end."""
START_S = 60


class Runtime(threading.Thread):
    """Takes keys without end, each time in a session of its own, and notes what it was given."""

    def __init__(self, number: int, url: str, vendor: Vendor) -> None:
        super().__init__(daemon=True)
        self.number, self.url, self.vendor = number, url, vendor
        self.held: list[tuple[int, bytes]] = []
        self.keys: dict[bytes, set[tuple[bytes, bytes]]] = {}
        self.told: dict[bytes, int] = {}
        self.faults: list[str] = []
        self.stop = threading.Event()

    @property
    def meter(self) -> bytes:
        return self.number.to_bytes(16, "big")

    def run(self) -> None:
        while not self.stop.is_set():
            name = f"load-{self.number}-{len(self.held) // SESSIONS}"
            try:
                with self.vendor.client(self.url, license_id=name, meter=self.meter) as client:
                    self.ask(client)
            except BrokerUnavailable:
                time.sleep(0.01)  # it was killed
            except CloisterError as error:
                self.faults.append(f"{type(error).__name__}: {error}")

    def ask(self, client: BrokerClient) -> None:
        released, ticket = client.release(), client.ticket.digest
        self.held.append((released.entry, released.digest))
        keys = (released.bundle_key.key, released.meter_key)
        self.keys.setdefault(ticket, set()).add(keys)
        counter = LeaseCounter(client)
        for _ in range(ADVANCES):
            before, told = counter.read(), self.told.get(ticket, 0)
            if before < told:
                self.faults.append(f"a counter fell from {told} to {before}")
            counter.advance(before, before + 1)
            self.told[ticket] = before + 1


def measure(
    kills: Annotated[int, typer.Option("--kills", min=1)] = 100,
    runtimes: Annotated[int, typer.Option("--runtimes", min=1)] = 4,
) -> dict[str, object]:
    """Releases that are not in the ledger, and counters that fell; all must be 0."""
    with tempfile.TemporaryDirectory() as place:
        return _measure(kills, runtimes, Path(place))


def _measure(kills: int, count: int, place: Path) -> dict[str, object]:
    vendor = Vendor(place)
    vendor.make()
    process = BrokerProcess(vendor.broker)
    listen = process.url.removeprefix("https://")
    runtimes = [Runtime(i, process.url, vendor) for i in range(count)]
    for runtime in runtimes:
        runtime.start()
    began = time.monotonic()
    with progress("kills") as update:
        for i in range(kills):
            before, deadline = held(runtimes), time.monotonic() + START_S
            while held(runtimes) == before and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(secrets.randbelow(300) / 1000)
            process.kill()
            # The ledger is opened and verified, or this raises.
            process = BrokerProcess(vendor.broker, listen=listen)
            update(i + 1, kills)
    for runtime in runtimes:
        runtime.stop.set()
    for runtime in runtimes:
        runtime.join(START_S)
    seconds = time.monotonic() - began
    process.kill()
    return {
        "kills": kills,
        "seconds": round(seconds),
        **compare(read_ledger(vendor.broker / FILE), runtimes),
    }


def held(runtimes: list[Runtime]) -> int:
    """Releases that runtimes hold."""
    return sum(len(runtime.held) for runtime in runtimes)


def compare(found: LedgerContents, runtimes: list[Runtime]) -> dict[str, object]:
    """What runtimes hold against what is on record."""
    recorded = {
        (entry.number, entry.digest) for entry in found.entries if entry.kind is EntryKind.RELEASE
    }
    missing = sum(one not in recorded for runtime in runtimes for one in runtime.held)
    behind = sum(
        found.counters.get((ticket.hex(), runtime.meter.hex()), -1) < told
        for runtime in runtimes
        for ticket, told in runtime.told.items()
    )
    return {
        "releases_held": held(runtimes),
        "releases_recorded": len(recorded),
        "releases_not_recorded": missing,
        "advances": sum(found.counters.values()),
        "counters_behind": behind,
        "tickets_with_several_keys": sum(
            len(keys) > 1 for runtime in runtimes for keys in runtime.keys.values()
        ),
        "other_faults": [fault for runtime in runtimes for fault in runtime.faults][:5],
    }


def faults(found: dict[str, object]) -> int:
    """How often a broker contradicted its ledger."""
    names = ("releases_not_recorded", "counters_behind", "tickets_with_several_keys")
    return sum(int(found[name]) for name in names) + len(found["other_faults"])
