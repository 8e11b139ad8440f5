"""A vendor sells a classifier with hidden layers; a customer runs it, and then attacks it."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from cloister.base import files
from cloister.base.rng import SystemRandom
from cloister.bundle import bundle_keys
from cloister.bundle.bundle_header import BundleHeader
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.codegen.compile_module import compile_module
from cloister.errors import BudgetError, BundleError, VerificationError
from cloister.examples.digits_demo import AllDigits, model_file, plain_logits
from cloister.examples.hidden_search import HiddenWords, Search
from cloister.graph.answers import AnswerKind, with_answers
from cloister.graph.graph import Graph
from cloister.graph.hidden import hide
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.trusted.query_counter import QueryCounter
from cloister.trusted.report import Result
from cloister.trusted.session import Session

LAYERS = 2
"""Hidden at the end of the model: a convolution and the dense layer."""
SOLD_QUERIES = 110
STOLEN_QUERIES = (25, 50, 100)
"""Answers that a thief collects within the sold queries; the customer's own ten come first."""
WANTED_QUERIES = (200, 500, 1437)
"""Answers that a thief would collect if no counter were there; measured on the vendor's side."""
VERSION = 2
STRIDE = 811
"""Has no factor in common with the number of images: every image once, in an order that mixes the
hands that wrote them."""
BUNDLE, COUNTER = "digits.bundle", "queries.sqlite"
MODULE_FOLDER = "module"


@dataclass(frozen=True)
class Refusal:
    """Something that the customer tried, and the error that it got."""

    attempt: str
    error: str


@dataclass(frozen=True)
class SurrogateTheft:
    """A surrogate that was trained on answers.

    accuracy   on held-out digits
    fidelity   share of them for which it gives the vendor's answer
    allowed    whether the counter lets a thief collect so many answers
    """

    queries: int
    accuracy: float
    fidelity: float
    allowed: bool


@dataclass(frozen=True, eq=False)
class HiddenOutcome:
    """Everything the demo found out.

    weights         of the hidden layers, and of the whole model
    answers         for the customer's digits, and the vendor's for the same
    vendor_accuracy on held-out digits
    control         the same search in the vendor's own folder, which finds the weights
    """

    header: BundleHeader
    bundle_bytes: int
    weights: tuple[int, int]
    images: Float32[np.ndarray, "n 1 8 8"]
    labels: Int64[np.ndarray, " n"]
    answers: Int64[np.ndarray, " n"]
    vendor_answers: Int64[np.ndarray, " n"]
    vendor_accuracy: float
    searches: tuple[Search, ...]
    control: Search
    refusals: tuple[Refusal, ...]
    thefts: tuple[SurrogateTheft, ...]
    stopped: str
    claims: Claims

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "bundle": {"nbytes": self.bundle_bytes, **vars(self.header)},
            "weights_hidden": self.weights[0],
            "weights": self.weights[1],
            "answers": self.answers,
            "vendor_answers": self.vendor_answers,
            "vendor_accuracy": self.vendor_accuracy,
            "searches": [asdict(search) for search in (*self.searches, self.control)],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "thefts": [asdict(theft) for theft in self.thefts],
            "stopped": self.stopped,
            "claims": self.claims.to_dict(),
        }


def run(digits: AllDigits, folder: Path, *, say: Callable[[str], None]) -> HiddenOutcome:
    """The whole story; the vendor and the customer have a folder each in `folder`.

    say   called with every step as it begins
    """
    vendor, customer = folder / "vendor", folder / "customer"
    say(f"1  the vendor compiles the last {LAYERS} layers, and seals them")
    model, header = _sell(vendor, customer)
    secret = _words(model, CompiledModule.load(vendor / MODULE_FOLDER))
    say("2  the customer runs the bundle on ten digits")
    own = _one_of_each(digits)
    pool = np.flatnonzero(~digits.held_out)
    stolen = pool[STRIDE * np.arange(len(pool)) % len(pool)]
    plan, module = _opened(customer)
    with Session(
        plan,
        modules={plan.modules[0].node: module},
        counter=QueryCounter.create(customer / COUNTER),
        record_payloads=True,
    ) as session:
        result = session.run(digits.images[own])
        say("3  a thief asks until the counter refuses")
        more = session.run(digits.images[stolen[: STOLEN_QUERIES[-1]]])
        stopped = _stopped(session, digits.images[stolen[-1:]])
    say("4  the thief trains a surrogate on the answers")
    thefts = _thefts(digits, stolen, _labels(plan, more))
    say("5  the customer searches for the weights")
    plain = plain_logits(digits.images).argmax(1)
    return HiddenOutcome(
        header=header,
        bundle_bytes=(customer / BUNDLE).stat().st_size,
        weights=(_count(hide(model, last=LAYERS).hidden), _count(model)),
        images=digits.images[own],
        labels=digits.labels[own],
        answers=_labels(plan, result),
        vendor_answers=plain[own],
        vendor_accuracy=float((plain == digits.labels)[digits.held_out].mean()),
        searches=tuple(_searches(secret, customer, (result, more))),
        control=secret.search("the vendor's own folder", _contents(vendor / MODULE_FOLDER)),
        refusals=tuple(_refusals(customer, folder / "changed.bundle")),
        thefts=tuple(thefts),
        stopped=stopped,
        claims=plan.claims(),
    )


# ---- the vendor


def _sell(vendor: Path, customer: Path) -> tuple[Graph, BundleHeader]:
    """Everything up to the files that the customer gets; the model and the bundle's header."""
    with model_file() as path:
        # The module returns the digit alone: scores would give more of the weights away.
        model = with_answers(load(path), AnswerKind.LABEL)
    rng = SystemRandom()
    module = compile_module(hide(model, last=LAYERS).hidden, salt=rng.random_bytes(32))
    module.save(vendor / MODULE_FOLDER)
    plan = policies.ennclave(
        model, last=LAYERS, module_digest=module.manifest.digest, queries=SOLD_QUERIES
    )
    bundle_keys.create_keys(vendor, rng=rng)
    customer.mkdir(mode=0o700)
    for name, private in ((bundle_keys.VENDOR_PUBLIC, False), (bundle_keys.CONTENT_KEY, True)):
        files.create(customer / name, (vendor / name).read_bytes(), private=private)
    for version, name in ((VERSION - 1, "older.bundle"), (VERSION, BUNDLE)):
        header = SealedBundle.seal(
            customer / name,
            plan,
            replace(module, source=""),
            content_key=bundle_keys.load_content_key(vendor / bundle_keys.CONTENT_KEY),
            signer=bundle_keys.load_signer(vendor / bundle_keys.VENDOR_KEY),
            version=version,
            rng=rng,
        )
    return model, header


# ---- the customer


def _opened(customer: Path) -> tuple[Plan, CompiledModule]:
    return SealedBundle.open(
        customer / BUNDLE,
        bundle_keys.load_content_key(customer / bundle_keys.CONTENT_KEY),
        vendor=bundle_keys.load_vendor(customer / bundle_keys.VENDOR_PUBLIC),
        at_least=VERSION,
    )


def _one_of_each(digits: AllDigits) -> Int64[np.ndarray, " n"]:
    """The first held-out image of every digit."""
    held_out = np.flatnonzero(digits.held_out)
    firsts = [held_out[digits.labels[held_out] == digit][0] for digit in range(10)]
    return np.array(firsts, np.int64)


def _labels(plan: Plan, result: Result) -> Int64[np.ndarray, " n"]:
    return np.asarray(result.outputs[plan.graph.outputs[0]], np.int64)


def _searches(secret: HiddenWords, customer: Path, results: tuple[Result, ...]) -> Iterator[Search]:
    yield secret.search("the bundle", [(customer / BUNDLE).read_bytes()])
    yield secret.search("all files of the customer", _contents(customer))
    entries = [entry for result in results for entry in result.transcript.entries]
    yield secret.search(
        "messages to and from the worker",
        [entry.payload.tobytes() for entry in entries if entry.payload is not None],
    )
    yield secret.search(
        "the answers", [array.tobytes() for result in results for array in result.outputs.values()]
    )


def _refusals(customer: Path, changed: Path) -> Iterator[Refusal]:
    """What the customer tries without the vendor."""
    vendor = bundle_keys.load_vendor(customer / bundle_keys.VENDOR_PUBLIC)
    key = bundle_keys.load_content_key(customer / bundle_keys.CONTENT_KEY)
    data = bytearray((customer / BUNDLE).read_bytes())
    data[-1] ^= 1
    files.replace(changed, bytes(data), private=True)
    guess = SystemRandom().random_bytes(bundle_keys.CONTENT_KEY_BYTES)
    for attempt, path, used in (
        ("open it with another key", customer / BUNDLE, guess),
        ("change one bit of it", changed, key),
        ("put back the older version", customer / "older.bundle", key),
    ):
        try:
            SealedBundle.open(path, used, vendor=vendor, at_least=VERSION)
        except BundleError as error:
            yield Refusal(attempt, str(error).replace(f"{path.parent}/", ""))
        else:
            raise VerificationError(f"the demo could {attempt}: do not use this build")


# ---- the thief


def _stopped(session: Session, image: Float32[np.ndarray, "1 1 8 8"]) -> str:
    """The error that a thief reads who asks for one answer more than was sold."""
    try:
        session.run(image)
    except BudgetError as error:
        return str(error)
    raise VerificationError("the demo answered more queries than were sold: do not use this build")


def _thefts(
    digits: AllDigits, stolen: Int64[np.ndarray, " n"], answers: Int64[np.ndarray, " k"]
) -> Iterator[SurrogateTheft]:
    """Surrogates from the answers that were collected, and from those that no counter stopped."""
    plain = plain_logits(digits.images).argmax(1)
    flat = digits.images.reshape(len(digits.images), -1)
    held_out = digits.held_out
    for queries in (*STOLEN_QUERIES, *WANTED_QUERIES):
        allowed = queries <= len(answers)
        taken = stolen[:queries]
        machine = importlib.import_module("sklearn.svm").SVC(C=10.0)
        machine.fit(flat[taken], answers[:queries] if allowed else plain[taken])
        guesses = machine.predict(flat[held_out])
        yield SurrogateTheft(
            queries,
            accuracy=float((guesses == digits.labels[held_out]).mean()),
            fidelity=float((guesses == plain[held_out]).mean()),
            allowed=allowed,
        )


# ---- what is secret


def _words(model: Graph, module: CompiledModule) -> HiddenWords:
    return HiddenWords(hide(model, last=LAYERS).hidden, module.weights)


def _contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def _count(graph: Graph) -> int:
    return sum(a.size for a in graph.constants.values() if a.dtype == np.float32)
