"""`cloister demo`: handwritten digits, recognised on a worker that cannot see or change them."""

import importlib
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
import typer
from jaxtyping import Float32, Int64
from rich.table import Table

from cloister.audit.input.exposure import Exposure, exposure, stretched
from cloister.audit.page import Section, histogram, page, paragraph, png, preformatted, table
from cloister.base import files
from cloister.cli.console import emit_json, human_bytes, out, progress
from cloister.cli.options import Json
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
SHOWN = 12
PLAIN_VIEW_INPUTS = 64
PAGE_NAME = "index.html"
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


def demo(
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where to write the page.")
    ] = Path("demo-output"),
    inputs: Annotated[
        int, typer.Option("--inputs", min=SHOWN, help="How many held-out digits to recognise.")
    ] = 360,
    as_json: Json = False,
) -> None:
    """Recognise digits on a worker that sees only noise, then catch one that lies."""
    outcome = run(load_digits(inputs))
    path = write_page(outcome, folder)
    if as_json:
        emit_json({**outcome.to_dict(), "page": str(path)})
    else:
        _show(outcome, path)


def load_digits(count: int) -> Digits:
    """The first `count` of the 360 digits that examples/train_digits.py never trained on.

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
    if count > held_out.sum():
        raise InputError(f"--inputs {count}: there are {held_out.sum()} held-out digits")
    return Digits(
        held_out=images[held_out][:count],
        labels=data.target[held_out][:count].astype(np.int64),
        calibration=images[~held_out][:CALIBRATION_IMAGES],
    )


def run(digits: Digits) -> Outcome:
    """Plain, private and attacked inference, in this order."""
    resource = resources.files("cloister.examples") / "digits.onnx"
    with resources.as_file(resource) as path:
        graph = load(path)
        engine = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (plain,) = engine.run(None, {"image": digits.held_out})
    plan = policies.slalom(graph, calibration=digits.calibration)
    result = _private(plan, digits)
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


def _private(plan: Plan, digits: Digits) -> Result:
    with progress("private + verified") as update, Session(plan, record_payloads=True) as session:
        return session.run(digits.held_out, progress=update)


def _without_pads(graph: Graph, digits: Digits) -> Exposure:
    """The same requests as a worker sees them when answers are checked but inputs not blinded."""
    plan = policies.verified(graph, calibration=digits.calibration)
    with Session(plan, record_payloads=True) as session:
        result = session.run(digits.held_out[:PLAIN_VIEW_INPUTS])
    return exposure(result.transcript, 0)


def _refusal(plan: Plan, digits: Digits) -> str:
    """What the user reads when a worker changes one number of one answer."""
    liar = start_local_worker(command=LYING_WORKER)
    try:
        with Session(plan, workers=[liar]) as session:
            session.run(digits.held_out[:1])
    except VerificationError as error:
        return str(error)
    raise VerificationError("the demo's lying worker was believed: do not use this build")


def _stages(report: Report) -> list[tuple[str, str, str]]:
    """(stage, milliseconds per input, what it is)."""

    def each(total_ms: float) -> str:
        return f"{total_ms / report.inputs:.2f}"

    return [
        ("trusted", each(report.trusted_ms), "CPU time: unblind, check, activate, blind"),
        ("worker", each(report.worker_ms), "waiting for the worker's linear layers"),
        ("offline", each(report.offline_ms), "CPU time: making one-time pads beforehand"),
    ]


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
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


def _show(outcome: Outcome, path: Path) -> None:
    grid = Table.grid(padding=(0, 2))
    for name, value in _facts(outcome):
        grid.add_row(name, value)
    for stage, each_ms, what in _stages(outcome.report):
        grid.add_row(f"{stage} time", f"{each_ms} ms per input ({what})")
    for node, shown in zip(outcome.nodes, outcome.seen, strict=True):
        grid.add_row(f"bytes sent for {node}", f"uniform? chi-square p {shown.uniformity.p_text}")
    without = outcome.seen_without_pads.uniformity.p_text
    grid.add_row(f"{outcome.nodes[0]} without pads", f"uniform? chi-square p {without}")
    console = out()
    console.print(grid)
    console.print(f"\n{outcome.claims}\n", soft_wrap=True)
    console.print("A worker that changes one number of one answer:")
    console.print(f"  refused: {outcome.refusal}\n", soft_wrap=True)
    console.print(f"page: {path}", soft_wrap=True)


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write the page; its path.

    Raises   InputError when the folder cannot be written
    """
    path = folder / PAGE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(path, _page(outcome).encode(), private=False)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}; choose another folder") from error
    return path


def _page(outcome: Outcome) -> str:
    return page(
        "Cloister demo",
        "A small network reads handwritten digits. Its convolutions and its dense layer ran in "
        "another process that is not trusted; it saw noise, and every answer it gave was checked.",
        [
            Section("What the worker saw", _pictures(outcome)),
            Section("The bytes it was sent", _histograms(outcome)),
            Section("The result", table(("", ""), _facts(outcome))),
            Section("Where the time went", _times(outcome.report)),
            Section("What is claimed, and under which assumption", _claims(outcome.claims)),
            Section("A worker that lies", _refused(outcome.refusal)),
        ],
    )


def _pictures(outcome: Outcome) -> str:
    own = stretched(outcome.digits.held_out[:SHOWN, 0])
    rows: list[tuple[str | bytes, ...]] = [
        ("your input", *(png(one) for one in own)),
        ("the worker saw", *(png(one) for one in outcome.seen[0].pictures[:SHOWN])),
        (
            "without pads it sees",
            *(png(one) for one in outcome.seen_without_pads.pictures[:SHOWN]),
        ),
        ("answer", *(str(answer) for answer in outcome.private[:SHOWN])),
    ]
    return table([""] * (SHOWN + 1), rows) + paragraph(
        "Second row: the first layer's request as it left the trusted side, the top byte of each "
        "32-bit word as a grey value. Third row: the same request under the policy that checks "
        "answers but hides nothing.",
        kind="soft",
    )


def _histograms(outcome: Outcome) -> str:
    node, blinded, plain = outcome.nodes[0], outcome.seen[0], outcome.seen_without_pads
    tested = table(
        ("layer", "chi-square, 255 degrees of freedom", "p"),
        (
            (name, f"{shown.uniformity.statistic:.1f}", shown.uniformity.p_text)
            for name, shown in zip(outcome.nodes, outcome.seen, strict=True)
        ),
    )
    return (
        histogram(blinded, f"{node}, blinded: p {blinded.uniformity.p_text}")
        + histogram(plain, f"{node} without pads: p {plain.uniformity.p_text}")
        + tested
        + paragraph(
            "A uniform histogram is what hiding looks like, not what proves it: the request is "
            "x + r modulo 2^32 with r uniform and used once, so it is independent of x.",
            kind="soft",
        )
    )


def _times(report: Report) -> str:
    layers = table(
        ("step", "protection", "trusted ms", "worker ms", "sent KiB", "received KiB"),
        [
            (
                row.name,
                row.protection,
                f"{row.trusted_ms / report.inputs:.3f}",
                f"{row.worker_ms / report.inputs:.3f}",
                f"{row.bytes_to_worker / report.inputs / 1024:.2f}",
                f"{row.bytes_from_worker / report.inputs / 1024:.2f}",
            )
            for row in report.layers
        ],
    )
    stages = table(("stage", "ms per input", ""), _stages(report))
    note = "A network this small costs less than the messages about it; the demo shows what is "
    note += "hidden and checked, not a speed-up. All numbers are per input."
    return stages + layers + paragraph(note, kind="soft")


def _claims(claims: Claims) -> str:
    columns = ("role", "", "about", "extent", "", "strength", "assuming")
    rows = [tuple(map(str, asdict(statement).values())) for statement in claims.statements]
    return table(columns, rows)


def _refused(refusal: str) -> str:
    return (
        paragraph("A second worker changed one number of one answer. The session raised:")
        + paragraph(f"VerificationError: {refusal}", kind="warn")
        + preformatted("released to the caller: nothing")
    )
