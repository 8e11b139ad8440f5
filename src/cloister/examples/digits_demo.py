"""Handwritten digits, recognised on a worker that cannot see or change them."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnxruntime as ort
from jaxtyping import Bool, Float32, Int64

from cloister.audit.input.exposure import Exposure, exposure
from cloister.base.sizes import human_bytes
from cloister.errors import InputError, VerificationError
from cloister.graph.graph import Graph
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.trusted.report import Report, Result
from cloister.trusted.session import Session
from cloister.wire.process import python
from cloister.wire.shm.shm_link import start_local_worker

HELD_OUT_EVERY = 5
CALIBRATION_IMAGES = 64
FEWEST = 12
"""Digits that are recognised at least, as the page shows so many."""
PLAIN_VIEW_INPUTS = 64
LYING_WORKER = tuple(python("-m", "cloister.worker", "--lie", "flip-one"))


@dataclass(frozen=True, eq=False)
class Digits:
    """The demo's data: images (n, 1, 8, 8) in [0, 1], the held-out part and some of the rest."""

    held_out: Float32[np.ndarray, "n 1 8 8"]
    labels: Int64[np.ndarray, " n"]
    calibration: Float32[np.ndarray, "m 1 8 8"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything the demo found out."""

    digits: Digits
    plain: Int64[np.ndarray, " n"]
    private: Int64[np.ndarray, " n"]
    largest_difference: float
    report: Report
    claims: Claims
    nodes: tuple[str, ...]
    seen: tuple[Exposure, ...]
    seen_without_pads: Exposure
    refusal: str

    def accuracy(self, answers: Int64[np.ndarray, " n"]) -> float:
        """Share of right answers."""
        return float((answers == self.digits.labels).mean())

    @property
    def agreement(self) -> float:
        """Share of inputs on which both computations name the same digit."""
        return float((self.plain == self.private).mean())

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "inputs": len(self.plain),
            "accuracy_plain": self.accuracy(self.plain),
            "accuracy_private": self.accuracy(self.private),
            "agreement": self.agreement,
            "largest_difference": self.largest_difference,
            "report": self.report.to_dict(),
            "claims": self.claims.to_dict(),
            "exposure": [
                {"node": node, "chi_square": shown.uniformity.statistic, "p": shown.uniformity.p}
                for node, shown in zip(self.nodes, self.seen, strict=True)
            ],
            "exposure_without_pads": self.seen_without_pads.uniformity._asdict(),
            "refusal": self.refusal,
        }


@dataclass(frozen=True, eq=False)
class AllDigits:
    """Every image of scikit-learn's digits; the model was not trained on the held-out ones."""

    images: Float32[np.ndarray, "n 1 8 8"]
    labels: Int64[np.ndarray, " n"]
    held_out: Bool[np.ndarray, " n"]


def all_digits() -> AllDigits:
    """The images, with the split of examples/train_digits.py.

    Raises   InputError without scikit-learn, which brings the images
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise InputError(
            "the demo's images come with scikit-learn: pip install scikit-learn"
        ) from error
    data = datasets.load_digits()
    images = (data.images[:, None] / 16.0).astype(np.float32)
    held_out = np.arange(len(images)) % HELD_OUT_EVERY == 0
    return AllDigits(images, data.target.astype(np.int64), held_out)


def load_digits(count: int) -> Digits:
    """The first `count` of the 360 digits that examples/train_digits.py never trained on.

    Raises   InputError without scikit-learn, or for more than there are
    """
    found = all_digits()
    if count > found.held_out.sum():
        raise InputError(f"--inputs {count}: there are {found.held_out.sum()} held-out digits")
    return Digits(
        held_out=found.images[found.held_out][:count],
        labels=found.labels[found.held_out][:count],
        calibration=found.images[~found.held_out][:CALIBRATION_IMAGES],
    )


def plain_logits(images: Float32[np.ndarray, "n 1 8 8"]) -> Float32[np.ndarray, "n 10"]:
    """The model's own answers, from ONNX Runtime."""
    with model_file() as path:
        engine = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = engine.run(None, {"image": images})
    return np.asarray(logits, np.float32)


def model_file() -> AbstractContextManager[Path]:
    """The file of the digits model."""
    return resources.as_file(resources.files("cloister.examples") / "digits.onnx")


def run(digits: Digits, *, progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Plain, private and attacked inference, in this order."""
    with model_file() as path:
        graph = load(path)
    plain = plain_logits(digits.held_out)
    plan = policies.slalom(graph, calibration=digits.calibration)
    result = _private(plan, digits, progress)
    logits = result.outputs[graph.outputs[0]]
    targets = range(len(plan.linear_nodes))
    return Outcome(
        digits=digits,
        plain=plain.argmax(1),
        private=logits.argmax(1),
        largest_difference=float(np.abs(plain - logits).max()),
        report=result.report,
        claims=plan.claims(),
        nodes=tuple(node.node for node in plan.linear_nodes),
        seen=tuple(exposure(result.transcript, target) for target in targets),
        seen_without_pads=_without_pads(graph, digits),
        refusal=_refusal(plan, digits),
    )


def _private(plan: Plan, digits: Digits, progress: Callable[[int, int], None] | None) -> Result:
    with Session(plan, record_payloads=True) as session:
        return session.run(digits.held_out, progress=progress)


def _without_pads(graph: Graph, digits: Digits) -> Exposure:
    """The same requests as a worker sees them when answers are checked but inputs not blinded."""
    plan = policies.verified(graph, calibration=digits.calibration)
    with Session(plan, record_payloads=True) as session:
        result = session.run(digits.held_out[:PLAIN_VIEW_INPUTS])
    return exposure(result.transcript, 0)


def _refusal(plan: Plan, digits: Digits) -> str:
    """The error that the user reads when a worker changes one number of one answer."""
    liar = start_local_worker(command=LYING_WORKER)
    try:
        with Session(plan, workers=[liar]) as session:
            session.run(digits.held_out[:1])
    except VerificationError as error:
        return str(error)
    raise VerificationError("the demo accepted a wrong answer: do not use this build")


def stages(report: Report) -> list[tuple[str, str, str]]:
    """Rows (stage, milliseconds per input, what it is)."""

    def each(total_ms: float) -> str:
        return f"{total_ms / report.inputs:.2f}"

    return [
        ("trusted", each(report.trusted_ms), "CPU time: unblind, check, activate, blind"),
        ("worker", each(report.worker_ms), "waiting for the worker's linear layers"),
        ("offline", each(report.offline_ms), "CPU time: making one-time pads beforehand"),
    ]


def facts(outcome: Outcome) -> list[tuple[str, str]]:
    """Rows (name, value) for people."""
    report = outcome.report
    bits = report.soundness_bits or 0.0
    return [
        ("digits", f"{report.inputs} that the model was not trained on"),
        ("accuracy, plain float32", f"{outcome.accuracy(outcome.plain):.1%}"),
        ("accuracy, private + verified", f"{outcome.accuracy(outcome.private):.1%}"),
        ("same answer", f"{outcome.agreement:.1%}"),
        (
            "soundness",
            f"{bits:.1f} bits: a wrong answer passes with probability at most 2^-{bits:.1f}",
        ),
        ("to the worker", f"{human_bytes(report.bytes_to_worker / report.inputs)} per input"),
        ("from the worker", f"{human_bytes(report.bytes_from_worker / report.inputs)} per input"),
        ("pads used", f"{report.pads_used}, each once"),
        ("hardware rooted", "yes" if report.hardware_rooted else "no: no TEE attests this machine"),
    ]
