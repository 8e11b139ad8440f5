"""Hostile runtimes, tickets and ledgers at a key broker, and a hostile broker at its client.

A key that leaves without an entry in the ledger is a finding, and so is one for a ticket that the
vendor did not sign.
"""

import itertools
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from attest.sessions import channels, prover, verifier
from broker.brokers import METER, Vendor, manifest_for
from bundle.bundles import FOREIGN_SIGNER, SIGNER, VENDOR
from cloister.attest.attested_client import AttestedClient
from cloister.attest.attested_service import ANSWER, ATTEST, OFFER, RECORD
from cloister.attest.clock import Clock
from cloister.attest.handshake_messages import Direction
from cloister.attest.sealed_messages import as_tensor
from cloister.base.rng import SystemRandom
from cloister.broker import broker_service
from cloister.broker.broker import Broker
from cloister.broker.broker_client import BrokerClient
from cloister.broker.ledger_verification import read_ledger
from cloister.errors import CloisterError
from cloister.tickets import ticket as ticket_file
from cloister.tickets.ticket import MAX_SERIAL, Ticket
from cloister.wire.https.bodies import Body, decode, encode
from fuzz.bounds import FindingError
from fuzz.case import Case, Maker
from fuzz.mutate import ODD_VALUES, mutated_bytes
from fuzz.structures import pick
from fuzz.ticket_cases import resigned

Made = tuple[bytes, Callable[[], object]]
OPERATIONS = ("release", "counter_read", "counter_advance")


@contextmanager
def broker(folder: Path) -> Iterator[Maker]:
    """Cases against one broker, which keeps its ledger all the while."""
    folder.mkdir(exist_ok=True)
    attacked = _Attacked(folder)
    with (
        attacked.vendor.opened() as opened,
        closing(broker_service.serve(opened, listen="127.0.0.1:0", rng=attacked.rng)) as service,
    ):  # fmt: skip
        attacked.broker, attacked.service = opened, service
        kinds = (
            attacked.ticket, attacked.signed_ticket, attacked.fields, attacked.counter,
            attacked.body, attacked.stranger, attacked.ledger, attacked.rows, attacked.client,
        )  # fmt: skip

        def case(rng: np.random.Generator) -> Case:
            kind = pick(rng, kinds)
            data, run = kind(rng)
            return Case(kind.__name__, data, run)

        yield case


class _Attacked:
    """A vendor's broker; each method makes a case."""

    def __init__(self, folder: Path) -> None:
        self.rng = SystemRandom()
        self.vendor = Vendor.make(folder)
        self.folder = folder
        self._good = self.vendor.ticket()
        self._numbers = itertools.count()
        self._copies = folder / "copies"
        self._copies.mkdir()
        self.kept = self._ledger_with_entries()

    def _ledger_with_entries(self) -> Path:
        with self.vendor.opened() as opened:
            operations = _operations(opened, self._good)
            data = self._good.signed_by(SIGNER)
            operations["release"].handle(Body({"meter": METER.hex()}, (as_tensor(data),)))
        kept = self.folder / "kept"
        shutil.copytree(self.vendor.broker, kept)
        return kept

    def _fresh(self, **changes) -> Ticket:
        """A licence of its own: the broker bounds the releases of each."""
        return replace(self._good, **{"license": f"l{next(self._numbers)}"} | changes)

    def _released(self, data: bytes, asked: Ticket, meter: object, *, signed: bool) -> None:
        body = Body({"meter": meter}, (as_tensor(data),))
        answer = _operations(self.broker, asked)["release"].handle(body)
        if not signed:
            raise FindingError("released", "for a ticket that the vendor did not sign")
        path = self.vendor.broker / "releases.sqlite"
        with closing(sqlite3.connect(path)) as database:
            (count,) = database.execute("SELECT count(*) FROM entries").fetchone()
        if answer.number("entry") > count:
            raise FindingError("released", "without an entry in the ledger")

    # ---- runtimes that were accepted

    def ticket(self, rng) -> Made:
        asked = self._fresh()
        good = asked.signed_by(SIGNER)
        foreign = self._fresh(vendor=FOREIGN_SIGNER.public_key().public_bytes_raw())
        data = pick(rng, (
            lambda: mutated_bytes(good, rng), lambda: rng.bytes(300),
            lambda: foreign.signed_by(FOREIGN_SIGNER),
        ))()  # fmt: skip
        return data, lambda: self._released(data, asked, METER.hex(), signed=data == good)

    def signed_ticket(self, rng) -> Made:
        asked = self._fresh()
        data = resigned(asked.signed_by(SIGNER), ticket_file.KIND, rng)
        return data, lambda: self._released(data, asked, METER.hex(), signed=True)

    def fields(self, rng) -> Made:
        """A good ticket in a call of odd fields."""
        asked = self._fresh()
        good = asked.signed_by(SIGNER)
        near = (METER.hex().upper(), METER.hex() + " ", rng.bytes(16).hex())
        meter = pick(rng, (*ODD_VALUES, *near))
        return good, lambda: self._released(good, asked, meter, signed=True)

    def counter(self, rng) -> Made:
        """A released licence whose counter is moved to odd places: never beyond the quota."""
        good = self._fresh()
        numbers = (0, 1, 2, good.quota, good.quota + 1, -1, MAX_SERIAL, MAX_SERIAL + 1, 2**70, None)
        moves = [
            {"before": pick(rng, numbers), "to": pick(rng, numbers), "name": rng.bytes(16).hex()}
            for _ in range(3)
        ]

        def run() -> None:
            operations = _operations(self.broker, good)
            data = as_tensor(good.signed_by(SIGNER))
            operations["release"].handle(Body({"meter": METER.hex()}, (data,)))
            for fields in moves:
                with suppress(CloisterError):
                    operations["counter_advance"].handle(Body(fields))
            count = operations["counter_read"].handle(Body()).number("count")
            if not 0 <= count <= good.quota:
                raise FindingError("counter", f"stands at {count} of {good.quota}")

        return json.dumps(moves).encode(), run

    def body(self, rng) -> Made:
        """Any operation with any body."""
        names = ("meter", "before", "to", "name", "x")
        odd = [one for one in ODD_VALUES if one not in ("\ud800",)]
        fields = {name: pick(rng, odd) for name in rng.choice(names, 3)}
        tensors = (as_tensor(rng.bytes(50)), np.zeros((2, 2), np.float32), np.zeros(0, np.uint8))
        given = tuple(pick(rng, tensors) for _ in range(int(rng.integers(0, 3))))
        operation = pick(rng, OPERATIONS)
        body = Body(fields, given)

        def run() -> None:
            _operations(self.broker, self._good)[operation].handle(body)

        return repr(body)[:2000].encode(), run

    # ---- strangers

    def stranger(self, rng) -> Made:
        """What may be sent without a conversation; a record may not."""
        offer = verifier(Direction.CALLER).offer()
        answer, _ = prover(Direction.CALLER).answer(offer)
        arrays = (
            as_tensor(mutated_bytes(pick(rng, (offer, answer)), rng)), as_tensor(rng.bytes(32)),
            np.zeros((2, 2), np.float32),
        )  # fmt: skip
        operation = pick(rng, (OFFER, ANSWER, ATTEST, RECORD, *OPERATIONS, ""))
        tensors = tuple(pick(rng, arrays) for _ in range(int(rng.integers(0, 4))))
        data = encode(Body({}, tensors))

        def run() -> None:
            self.service._stranger_route(operation).handle(decode(data)).run()
            if operation != OFFER:
                raise FindingError("accepted", f"{operation} of a stranger")

        return data, run

    # ---- the ledger

    def ledger(self, rng) -> Made:
        """Bytes of a file of the broker's folder are changed: it starts, or says what is wrong."""
        names = [one for one in sorted(self.kept.rglob("*")) if one.is_file()]
        path = pick(rng, names)
        data = mutated_bytes(path.read_bytes(), rng)
        return data, lambda: self._started(lambda place: _write(place / path.name, data))

    def rows(self, rng) -> Made:
        """The ledger's tables are changed, and the file is sound."""
        statement = pick(rng, (
            "DELETE FROM entries WHERE number = (SELECT max(number) FROM entries)",
            "DELETE FROM entries", "UPDATE meters SET count = -1", "DELETE FROM meters",
            "UPDATE meters SET count = 9223372036854775807",
            "DELETE FROM chips", "DELETE FROM bundles", "PRAGMA user_version = 9",
            "UPDATE bundles SET bundle_key = x'00'", "DROP TABLE meters", "DROP TABLE entries",
            "CREATE VIEW v AS SELECT 1",
        ))  # fmt: skip

        def change(place: Path) -> None:
            path = place / "releases.sqlite"
            with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as database, database:
                database.execute(statement)

        return statement.encode(), lambda: self._started(change)

    def _started(self, change: Callable[[Path], None]) -> None:
        place = self._copies / f"{next(self._numbers)}"
        shutil.copytree(self.kept, place)
        try:
            change(place)
            with closing(Broker(place, clock=Clock(self.vendor.time))) as opened:
                data = as_tensor(self._good.signed_by(SIGNER))
                operations = _operations(opened, self._good)
                operations["release"].handle(Body({"meter": METER.hex()}, (data,)))
                operations["counter_read"].handle(Body())
            read_ledger(place / "releases.sqlite")
        finally:
            shutil.rmtree(place)

    # ---- a hostile broker

    def client(self, rng) -> Made:
        """A broker that answers a release with anything."""
        odd = [one for one in ODD_VALUES if one not in ("\ud800",)]
        good = {"entry": 1, "digest": "00" * 32}
        fields = {name: one if rng.integers(0, 2) else pick(rng, odd) for name, one in good.items()}
        arrays = (
            as_tensor(bytes(32)), as_tensor(bytes(31)), as_tensor(b""), np.zeros(4, np.float32),
        )  # fmt: skip
        keys = (arrays[0],) * 2 if rng.integers(0, 2) else (pick(rng, arrays), pick(rng, arrays))
        answer = Body(fields, keys[: int(rng.integers(1, 6))])

        def called(self, operation: str, fields=None, tensors=()) -> Body:
            return answer

        def run() -> None:
            with (
                patch.object(AttestedClient, "__init__", lambda self, *_, **__: None),
                patch.object(AttestedClient, "close", lambda self: None),
                patch.object(AttestedClient, "call", called),
            ):
                client = BrokerClient(
                    "https://127.0.0.1:1", self._good.signed_by(SIGNER), vendor=VENDOR,
                    attester=self.vendor.attester(), manifest=b"", meter=METER, rng=self.rng,
                )  # fmt: skip
                client.release()

        return repr(answer)[:2000].encode(), run


def _operations(opened: Broker, ticket: Ticket):
    """What a runtime may ask for that was started for a ticket."""
    judges, _ = channels(Direction.CALLER, manifest=manifest_for(ticket).to_bytes())
    return broker_service._operations(opened, judges)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
