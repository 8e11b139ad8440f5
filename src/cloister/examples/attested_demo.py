"""A vendor rents out a classifier: four parties, each a process, and a key that leaves for proven
machines alone.

The vendor compiles, seals and issues a ticket; its broker releases the key; the operator of a
machine serves the bundle without reading it; a customer has ten digits recognised. The machines are
played: their evidence is signed by a key in a file, and says so.
"""

import json as jsons
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from jaxtyping import Float32, Int64

from cloister.base import files
from cloister.base.identity import CERTIFICATE_FILE, create_certificate
from cloister.base.rng import SystemRandom
from cloister.broker.broker_folder import certificate_digest
from cloister.bundle import bundle_keys
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.examples.commands import cloister, refused, serving
from cloister.examples.digits_demo import AllDigits, model_file, plain_logits
from cloister.examples.hidden_demo import LAYERS
from cloister.examples.hidden_search import HiddenWords
from cloister.examples.replaying_proxy import ReplayingProxy
from cloister.graph.hidden import hide
from cloister.graph.onnx.load import load
from cloister.plan.claims import Claims

QUOTA = 10
LICENSE = "digits-clinic-7"
CODE, OTHER_CODE = "c1" * 32, "0e" * 32
"""Measurements: of the runtime that the policies name, and of another program."""
CHIP = "a7" * 64
VALID = timedelta(days=1)
CALIBRATION = 128
BUNDLE, TICKET, POLICY, IMAGES = "digits.bundle", "digits.lic", "policy.toml", "images.npy"
RECEIPTS = "receipts"
MACHINE = "machine.pem"
"""The key of a played machine, and its description."""
INKED = 5
"""Pixels of a row that make it one digit's own."""
PARTIES = ("vendor", "broker", "operator", "customer")


@dataclass(frozen=True)
class Refused:
    """Something that was tried, who refused it, and the reason that was given."""

    attempt: str
    by: str
    reason: str


@dataclass(frozen=True)
class Looked:
    """A search for secrets: how many of them a place had.

    found   by secret
    """

    place: str
    nbytes: int
    found: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class AttestedOutcome:
    """Everything the demo found out.

    answers       for the customer's digits, through the ticket; `vendor_answers` without any of it
    receipt       as `cloister license show` verified it
    ledger        of the broker
    appraisal     of the operator's machine, by the customer
    looked        searches, also where the secrets belong
    commands      who ran which, in order
    """

    images: Float32[np.ndarray, "n 1 8 8"]
    labels: Int64[np.ndarray, " n"]
    answers: Int64[np.ndarray, " n"]
    vendor_answers: Int64[np.ndarray, " n"]
    receipt: Mapping[str, Any]
    ledger: Mapping[str, Any]
    appraisal: Mapping[str, Any]
    refusals: tuple[Refused, ...]
    looked: tuple[Looked, ...]
    commands: tuple[tuple[str, str], ...]
    claims: Claims

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "answers": self.answers,
            "vendor_answers": self.vendor_answers,
            "receipt": self.receipt,
            "ledger": self.ledger,
            "appraisal": self.appraisal,
            "refusals": [asdict(one) for one in self.refusals],
            "looked": [asdict(one) for one in self.looked],
            "commands": [{"who": who, "command": line} for who, line in self.commands],
            "claims": self.claims.to_dict(),
        }


def run(digits: AllDigits, folder: Path, *, say: Callable[[str], None]) -> AttestedOutcome:
    """The whole story; every party has a folder in `folder`.

    say   called with every step as it begins
    """
    story = _Story(digits, folder, say)
    story.sell()
    with story.broker() as broker, story.runtime(broker) as runtime, story.network(runtime):
        story.recognise()
        story.refuse(broker)
        return story.outcome()


class _Story:
    """The parties' folders, and what they did so far."""

    def __init__(self, digits: AllDigits, folder: Path, say: Callable[[str], None]) -> None:
        self._say, self._folder = say, folder
        self._vendor, self._broker, self._operator, self._customer = (
            folder / name for name in PARTIES
        )
        for name in PARTIES:
            (folder / name).mkdir(mode=0o700)
        held_out = np.flatnonzero(digits.held_out)
        own = [held_out[digits.labels[held_out] == digit][0] for digit in range(10)]
        self._images, self._labels = digits.images[own], digits.labels[own]
        self._plain = plain_logits(self._images).argmax(1)
        self._calibration = digits.images[~digits.held_out][:CALIBRATION]
        self._commands: list[tuple[str, str]] = []
        self._refusals: list[Refused] = []

    # ---- the vendor

    def sell(self) -> None:
        """Compile, seal, and say what a machine has to prove; then make the broker and a ticket."""
        self._say(f"1  the vendor seals the last {LAYERS} layers, and makes a broker and a ticket")
        vendor = self._vendor
        np.save(vendor / "calibration.npy", self._calibration)
        with model_file() as model:
            self._run(
                "vendor", "compile", model, "--last", LAYERS, "--policy", "slalom",
                "--calibration", vendor / "calibration.npy", "--out", vendor / "module",
            )  # fmt: skip
        bundle_keys.create_keys(vendor, rng=SystemRandom())
        key = ("--key", vendor / bundle_keys.CONTENT_KEY)
        signer = ("--signer", vendor / bundle_keys.VENDOR_KEY)
        self._run("vendor", "bundle", "seal", vendor / "module", *key, *signer,
                  "--out", vendor / BUNDLE)  # fmt: skip
        _write(vendor / POLICY, _policy())
        self._run(
            "vendor", "broker", "init", self._broker / "broker", "--bundle", vendor / BUNDLE, *key,
            "--vendor", vendor / bundle_keys.VENDOR_PUBLIC, "--policy", vendor / POLICY,
        )  # fmt: skip
        self._run(
            "vendor", "license", "issue", vendor / TICKET, "--bundle", vendor / BUNDLE, *signer,
            "--license", LICENSE, "--quota", QUOTA, "--outputs", "label",
            "--not-after", f"{datetime.now(UTC) + VALID:%Y-%m-%dT%H:%MZ}",
            "--broker", certificate_digest(self._broker / "broker" / CERTIFICATE_FILE).hex(),
        )  # fmt: skip
        for name in (BUNDLE, bundle_keys.VENDOR_PUBLIC, TICKET):
            _copy(vendor / name, self._operator)
        for name in (BUNDLE, bundle_keys.VENDOR_PUBLIC, TICKET, POLICY):
            _copy(vendor / name, self._customer)

    # ---- services

    @contextmanager
    def broker(self) -> Iterator[str]:
        """The vendor's service."""
        self._say("2  the broker serves; a machine proves itself to it, and gets the bundle's key")
        with self._serving("broker", "broker", "serve", self._broker / "broker") as url:
            yield url

    @contextmanager
    def runtime(self, broker: str) -> Iterator[str]:
        """The operator's machine."""
        machine = _machine(self._operator / MACHINE, CODE)
        with self._serving("operator", *self._runtime(broker, machine)) as url:
            yield url

    @contextmanager
    def network(self, runtime: str) -> Iterator[None]:
        """Whoever carries the customer's messages."""
        folder = self._folder / "network"
        folder.mkdir(mode=0o700)
        create_certificate(folder, "a network")
        with ReplayingProxy(runtime, folder=folder) as self._proxy:
            yield

    def _runtime(self, broker: str, machine: Path) -> tuple[object, ...]:
        operator = self._operator
        return (
            "trusted", "serve", "--bundle", operator / BUNDLE,
            "--vendor", operator / bundle_keys.VENDOR_PUBLIC, "--broker", broker,
            "--ticket", operator / TICKET, "--meter", operator / "meter",
            "--insecure-simulated", machine,
        )  # fmt: skip

    # ---- the customer

    def recognise(self) -> None:
        """Ten digits, their labels, and the receipt."""
        self._say("3  the customer has ten digits recognised, and verifies the receipt")
        customer = self._customer
        np.save(customer / IMAGES, self._images)
        receipts = ("--receipts", customer / RECEIPTS)
        run = self._run("customer", *self._asking(self._proxy.url), *receipts, "--json")
        self._result = jsons.loads(run)
        vendor = ("--vendor", customer / bundle_keys.VENDOR_PUBLIC)
        shown = self._run(
            "customer", "license", "show", customer / TICKET, *vendor, *receipts, "--json"
        )
        self._shown = jsons.loads(shown)

    def _asking(self, url: str, images: str = IMAGES) -> tuple[object, ...]:
        customer = self._customer
        return (
            "run", customer / BUNDLE, customer / images, "--trusted", url,
            "--vendor", customer / bundle_keys.VENDOR_PUBLIC, "--appraisal", customer / POLICY,
        )  # fmt: skip

    # ---- who is refused

    def refuse(self, broker: str) -> None:
        """Four attempts, each of which has to fail."""
        self._say("4  four attempts, each refused")
        debug = _machine(self._operator / "debug.pem", CODE, debug=True)
        listen = ("--listen", "127.0.0.1:0")
        self._refuse(
            "the operator starts the machine in debug mode", "broker",
            *self._runtime(broker, debug), *listen,
        )  # fmt: skip
        other = _machine(self._operator / "other.pem", OTHER_CODE)
        serve = ("trusted", "serve", "--insecure-simulated", other)
        with self._serving("operator", *serve) as url:
            self._refuse("the machine runs another program", "customer", *self._asking(url))
        self._proxy.replaying = True
        self._refuse(
            "the network replays what the machine answered before", "customer",
            *self._asking(self._proxy.url),
        )  # fmt: skip
        self._proxy.replaying = False
        np.save(self._customer / "one.npy", self._images[:1])
        self._refuse(
            "the customer asks for one more", "meter", *self._asking(self._proxy.url, "one.npy")
        )

    # ---- the end

    def outcome(self) -> AttestedOutcome:
        """All that was found out."""
        self._say("5  the secrets are searched for")
        ledger = self._run("vendor", "broker", "ledger", self._broker / "broker", "--json")
        return AttestedOutcome(
            images=self._images,
            labels=self._labels,
            answers=np.array([one["top"][0]["index"] for one in self._result["outputs"]], np.int64),
            vendor_answers=self._plain,
            receipt=self._receipt(),
            ledger=jsons.loads(ledger),
            appraisal=self._result["report"]["appraisal"],
            refusals=tuple(self._refusals),
            looked=tuple(self._looked()),
            commands=tuple(self._commands),
            claims=Claims.from_dict(self._result["claims"]),
        )

    def _receipt(self) -> dict[str, Any]:
        """The one receipt, and what its ticket says."""
        (ticket,), shown = self._shown["tickets"], self._shown["receipts"]
        (receipt,) = shown["receipts"]
        named = {name: ticket[name] for name in ("license", "outputs", "quota")}
        return {**named, **receipt, "signer": shown["signer"]}

    def _looked(self) -> Iterator[Looked]:
        with model_file() as path:
            hidden = hide(load(path), last=LAYERS).hidden
        module = CompiledModule.load(self._vendor / "module")
        weights = HiddenWords(hidden, module.weights)
        key = bundle_keys.load_content_key(self._vendor / bundle_keys.CONTENT_KEY)
        sealed = SealedBundle.show(self._vendor / BUNDLE)
        of_bundle = bundle_keys.BundleKey.derive(key, bundle_id=sealed.bundle_id).key
        rows = [
            row.tobytes() for row in self._images.reshape(-1, 8) if np.count_nonzero(row) >= INKED
        ]
        for place, parts in (
            ("messages between the customer and the machine", self._proxy.messages),
            ("files of the operator", _contents(self._operator)),
            ("files of the broker", _contents(self._broker)),
            ("files of the customer", _contents(self._customer)),
            ("files of the vendor", _contents(self._vendor)),
        ):
            found = {
                "content key": sum(key in part for part in parts),
                "the bundle's key": sum(of_bundle in part for part in parts),
                "digits": sum(row in part for part in parts for row in rows),
                "hidden weights": weights.search(place, parts).hidden_words,
            }
            yield Looked(place, sum(map(len, parts)), found)

    def _run(self, who: str, *arguments: object) -> str:
        self._note(who, arguments)
        return cloister(*arguments)

    @contextmanager
    def _serving(self, who: str, *arguments: object) -> Iterator[str]:
        self._note(who, arguments)
        with serving(*arguments, "--listen", "127.0.0.1:0") as url:
            yield url

    def _refuse(self, attempt: str, by: str, *arguments: object) -> None:
        reason = refused(*arguments).replace(f"{self._folder}/", "")
        self._refusals.append(Refused(attempt, by, reason))

    def _note(self, who: str, arguments: tuple[object, ...]) -> None:
        words = " ".join(map(str, arguments)).replace(f"{self._folder}/", "")
        self._commands.append((who, f"cloister {words}"))


# ---- files


def _policy() -> bytes:
    return (
        "# What a machine has to prove before it gets a key, or an input.\n"
        f'[insecure-simulated]\nmeasurements = ["{CODE}"]\n'
    ).encode()


def _machine(path: Path, measurement: str, *, debug: bool = False) -> Path:
    """The file of a machine that is played."""
    key = Ed25519PrivateKey.from_private_bytes(SystemRandom().random_bytes(32))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    told = f'measurement = "{measurement}"\nchip_id = "{CHIP}"\ndebug = {str(debug).lower()}\n'
    return _write(path, told.encode() + pem)


def _write(path: Path, data: bytes) -> Path:
    files.replace(path, data, private=True)
    return path


def _copy(path: Path, folder: Path) -> None:
    _write(folder / path.name, path.read_bytes())


def _contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
