"""Where may a small network be split? An audit of every split, and a run at each of them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from jaxtyping import Float32, Int64

from cloister.audit import input as input_audit
from cloister.audit.input.split_settings import SplitSettings
from cloister.base import files
from cloister.examples.digits_demo import CALIBRATION_IMAGES, AllDigits
from cloister.graph.graph import Graph
from cloister.graph.onnx.load import load
from cloister.graph.split import split_points
from cloister.plan import policies
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.plan.protection import INTEGRITY
from cloister.trusted.report import Report
from cloister.trusted.session import Session

if TYPE_CHECKING:
    from cloister.audit.input import SplitAudit

DATA = "digits.npz"
SETTINGS = SplitSettings(effort=0.15)
"""Of the attacks: an audit's steps would take too long for a demonstration."""


@dataclass(frozen=True, eq=False)
class SplitRun:
    """The model run with a worker, on all held-out digits.

    until       the last nodes before the split; None: every linear layer is blinded
    integrity   what is checked
    same        answers that are those of the model in the clear
    """

    until: str | None
    integrity: str
    plan: Plan
    report: Report
    same: int

    @property
    def hidden_layers(self) -> int:
        """Linear layers whose inputs the worker does not read."""
        return sum(self.plan.protections[node.node].hidden for node in self.plan.linear_nodes)


@dataclass(frozen=True, eq=False)
class SplitOutcome:
    """Everything the demo found out.

    claims     of the plan that follows from the audit
    accuracy   of the model in the clear, on `inputs` digits
    runs       blinded up to its end, and at every split with each integrity
    """

    audit: "SplitAudit"
    claims: Claims
    inputs: int
    accuracy: float
    runs: tuple[SplitRun, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        report = self.audit.report
        return {
            "audit": {**report.to_dict(), "digest": report.digest, **report.judgement()},
            "claims": self.claims.to_dict(),
            "inputs": self.inputs,
            "accuracy": self.accuracy,
            "runs": [
                {
                    "until": run.until,
                    "integrity": run.integrity,
                    "same_answers": run.same,
                    "report": run.report.to_dict(),
                }
                for run in self.runs
            ],
        }


def model_file() -> AbstractContextManager[Path]:
    """The file of the network that tells odd digits from even ones."""
    return resources.as_file(resources.files("cloister.examples") / "parity.onnx")


def run(
    digits: AllDigits,
    folder: Path,
    *,
    settings: SplitSettings = SETTINGS,
    said: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> SplitOutcome:
    """Audit the splits of the network, and run it at each of them.

    folder   keeps the attacks that were made
    said     is called with how many attacks of how many are done, and what the last one gave

    Raises   InputError without PyTorch and SciPy
    """
    with model_file() as path:
        graph = load(path)
    return run_split(graph, digits, _audit(graph, digits, folder, settings, said))


def run_split(graph: Graph, digits: AllDigits, audit: "SplitAudit") -> SplitOutcome:
    """Run the model blinded up to its end, and at every split with each integrity."""
    images, labels = digits.images[digits.held_out], digits.labels[digits.held_out]
    with model_file() as path:
        plain = _plain(path, images)
    calibration = digits.images[~digits.held_out][:CALIBRATION_IMAGES]
    plans: dict[tuple[str | None, str], Plan] = {
        (None, "full"): policies.slalom(graph, calibration=calibration)
    }
    for point in split_points(graph):
        for integrity in INTEGRITY:
            plans[point.name, integrity] = policies.origami(
                graph, until=point.until, integrity=integrity, calibration=calibration
            )
    return SplitOutcome(
        audit,
        policies.origami(graph, audit=audit.report).claims(),
        len(plain),
        float((plain == labels % 2).mean()),
        tuple(_run(*way, plan, images, plain) for way, plan in plans.items()),
    )


def _plain(path: Path, images: Float32[np.ndarray, "n 1 8 8"]) -> Int64[np.ndarray, " n"]:
    """The model's own answers, from ONNX Runtime."""
    engine = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = engine.run(None, {engine.get_inputs()[0].name: images})
    return np.asarray(logits.argmax(1), np.int64)


def _audit(
    graph: Graph,
    digits: AllDigits,
    folder: Path,
    settings: SplitSettings,
    said: Callable[[int, int, str], None],
) -> "SplitAudit":
    """Held-out digits are attacked; the attacker has those that the model was trained on."""
    path = folder / DATA
    with files.replacing(path, private=False) as file:
        np.savez(
            file,
            test_images=digits.images[digits.held_out].transpose(0, 2, 3, 1),
            train_images=digits.images[~digits.held_out].transpose(0, 2, 3, 1),
        )
    attacked = int(digits.held_out.sum())
    images = input_audit.read_split_images(graph, path, attacked=attacked)
    return input_audit.attack_splits(graph, images, folder=folder, settings=settings, said=said)


def _run(
    until: str | None,
    integrity: str,
    plan: Plan,
    images: Float32[np.ndarray, "n 1 8 8"],
    plain: Int64[np.ndarray, " n"],
) -> SplitRun:
    with Session(plan) as session:
        result = session.run(images)
    answers = result.outputs[plan.graph.outputs[0]].argmax(1)
    return SplitRun(until, integrity, plan, result.report, int((answers == plain).sum()))
