"""What a training run tells whom, derived from what it sends (`sent`) and nothing else.

The claims follow from the algorithm, not from measurements; `cloister audit encrypted` attacks
logs of what a party was sent, and so tests them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cloister.data.feature_noise import epsilon
from cloister.data.info import DatasetInfo
from cloister.training.sent import Content, Party, sent
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer

Severity = Literal["nothing", "bounded", "everything"]
"""bounded: a bound holds that is stated. everything: none does, exact copies included."""
SEVERITIES: tuple[Severity, ...] = ("nothing", "bounded", "everything")

VALUES, LABELS, MODEL = "a sample's values", "labels", "the model"
WHO = "who trains with what"


@dataclass(frozen=True)
class Claim:
    """What one party could learn about one thing, and under which assumption no more."""

    party: str
    about: str
    severity: Severity
    learns: str
    assumes: str


@dataclass(frozen=True)
class _Run:
    """What the claims of a run depend on besides the messages."""

    settings: Settings
    info: DatasetInfo
    rank: int | None
    epsilon: float | None

    @property
    def private(self) -> str | None:
        """The differential privacy of every weight, where there is any."""
        if self.epsilon is None or self.settings.noise is None:
            return None
        delta = self.settings.noise.delta
        return f"({self.epsilon:.3g}, {delta:g})-differentially private, one sample replaced"


Told = tuple[str, Severity, str]
"""About what, how bad, and what is learned."""
Tells = Callable[[_Run], Sequence[Told]]
"""What one content tells."""


def claims(trainer: Trainer, *, epochs: int) -> list[Claim]:
    """What every party could know after `epochs` epochs, worst first for each thing."""
    settings = trainer.settings
    noise = settings.noise
    run = _Run(
        settings,
        trainer.info,
        None if trainer.projection is None else trainer.projection.rank,
        None if noise is None else epsilon(noise, epochs=epochs),
    )
    messages = sent(settings, hosted=trainer.hosted)
    found: list[Claim] = []
    for party in Party:
        contents = dict.fromkeys(c for m in messages if m.party is party for c in m.carries)
        if contents:
            found += _of_party(party, list(contents), run)
    return found


def _of_party(party: Party, contents: Sequence[Content], run: _Run) -> Iterator[Claim]:
    told: dict[str, list[tuple[Severity, str]]] = {VALUES: [], LABELS: []}
    for content in contents:
        for about, severity, learns in TELLS[content](run):
            told.setdefault(about, []).append((severity, learns))
    for about, parts in told.items():
        found: set[Severity] = {"nothing", *(severity for severity, _ in parts)}
        worst = max(found, key=SEVERITIES.index)
        texts = dict.fromkeys(text for severity, text in parts if severity == worst)
        learns = "; ".join(texts) or "nothing"
        yield Claim(party.value, about, worst, learns, _assumes(party, about, worst))


def _assumes(party: Party, about: str, severity: Severity) -> str:
    """Only what hides something assumes something."""
    if severity == "everything":
        return "it is trusted: every other line rests on that" if party is Party.RUNTIME else ""
    if about not in (VALUES, LABELS):
        return ""
    if party is Party.NETWORK:
        return "TLS 1.3"
    if party is Party.AUTHORITY:
        return "it never holds the data set file: with that, it reads every sample"
    if party is Party.HOST and severity == "bounded":
        return "nothing of its answers; each time that it kills the run counts as one more epoch"
    if party is Party.HOST:
        return "nothing of its answers; it pools nothing with the authority"
    if party in (Party.HOLDER, Party.FOLDER):
        return ""
    return "it pools nothing with the authority"


def _frozen_values(run: _Run) -> Sequence[Told]:
    rank, dim = run.rank or 0, run.info.dim
    if run.settings.unmask_to == "trusted":
        return [(VALUES, "everything", "any function that it asks for, exactly")]
    if run.settings.mode == "paper":
        return [(VALUES, "everything", _unbounded(run))]
    if rank >= dim:
        return [(VALUES, "everything", _all_of(run))]
    text = (
        f"{rank} fixed linear functions of {dim} values ({rank / dim:.0%}), blurred as its owner "
        "decided, the same for any number of runs: enough for a likeness, and for more where the "
        "owner allowed exact values"
    )
    return [(VALUES, "bounded", text)]


def _values(run: _Run) -> Sequence[Told]:
    budget, dim = run.info.budget_rank, run.info.dim
    if run.settings.unmask_to == "trusted":
        return [(VALUES, "everything", "any function that it asks for, exactly")]
    if run.settings.mode == "paper":
        return [(VALUES, "everything", _unbounded(run))]
    if budget >= dim:
        return [(VALUES, "everything", _all_of(run))]
    text = (
        f"at most {budget} linear functions of {dim} values ({budget / dim:.0%}); beyond, the "
        "authority refuses"
    )
    return [(VALUES, "bounded", text)]


def _unbounded(run: _Run) -> str:
    return f"every value: no budget, and {run.info.dim} independent functions determine a sample"


def _all_of(run: _Run) -> str:
    dim = run.info.dim
    return f"no bound: {dim} independent functions of {dim} values determine a sample"


def _weights(run: _Run) -> Sequence[Told]:
    if run.private is not None:
        text = f"what weights at every step tell: they are {run.private}"
        return [
            (VALUES, "bounded", text),
            (LABELS, "bounded", text),
            (MODEL, "everything", "the first layer's weights at every step"),
        ]
    text = (
        "no bound: differences of the weights are gradients of batches; a batch of one is its "
        "sample, and answers that switch the units of all others off make any batch one"
    )
    return [
        (VALUES, "everything", text),
        (LABELS, "everything", "no bound: gradients of batches tell their classes"),
        (MODEL, "everything", "the first layer's weights at every step"),
    ]


def _output_gradients(_: _Run) -> Sequence[Told]:
    text = (
        "no bound, with noise or without: with the weights before and after, each sample's output "
        "gradient is a linear system for the batch, solved where the layer is as wide as that"
    )
    return [
        (VALUES, "everything", text),
        (LABELS, "everything", "every label: the output gradients show them, and active units"),
    ]


def _model(run: _Run) -> Sequence[Told]:
    weights: Told = (MODEL, "everything", "all weights")
    if run.private is not None:
        text = f"the model is {run.private}; the printed losses and accuracies are not"
        return [(VALUES, "bounded", text), (LABELS, "bounded", text), weights]
    unbounded = "no bound: a model tells of the samples that it was trained on"
    labels: Told = (LABELS, "everything", unbounded)
    if run.rank is not None and run.rank < run.info.dim:
        text = f"at most the {run.rank} functions of each sample that it was trained on"
        return [(VALUES, "bounded", text), labels, weights]
    return [(VALUES, "everything", unbounded), labels, weights]


def _state(run: _Run) -> Sequence[Told]:
    """The state of a run is for its maker alone."""
    weights: Told = (MODEL, "everything", "all weights, at every checkpoint")
    if run.rank is not None:
        return [*_model(run)[:2], weights]
    text = (
        "no bound: neighbouring checkpoints and the optimiser's state hold gradients of batches, "
        "and the key of the noise that comes next takes it away"
    )
    return [(VALUES, "everything", text), (LABELS, "everything", text), weights]


def _classes(run: _Run) -> Sequence[Told]:
    text = "the class of every sample, under names only the clients can translate"
    return [(LABELS, "everything", text)]


def _features(run: _Run) -> Sequence[Told]:
    if run.settings.unmask_to == "server":
        return _frozen_values(run)
    if run.rank == run.info.dim:
        return [(VALUES, "everything", _all_of(run))]
    text = f"{run.rank} linear functions of {run.info.dim} values, exactly"
    return [(VALUES, "bounded", text)]


def _names(_: _Run) -> Sequence[Told]:
    text = "sizes, the split, and which client each sample came from; clients shuffle their order"
    return [(WHO, "bounded", text)]


def _projection(_: _Run) -> Sequence[Told]:
    return [(MODEL, "nothing", "only the fixed projection")]


TELLS: Mapping[Content, Tells] = {
    Content.NAMES: _names,
    Content.CIPHERTEXTS: lambda _: [
        (VALUES, "nothing", "nothing: every ciphertext is uniformly random"),
        (LABELS, "nothing", "nothing: every ciphertext is uniformly random"),
    ],
    Content.PROJECTION: _projection,
    Content.WEIGHTS: _weights,
    Content.OUTPUT_GRADIENTS: _output_gradients,
    Content.FIXED_VALUES: _frozen_values,
    Content.VALUES: _values,
    Content.CLASSES: _classes,
    Content.SPENT: lambda _: [(WHO, "bounded", "how much of the budget is spent, and requests")],
    Content.TRAINING: lambda _: [(MODEL, "everything", "all weights: it trains the model")],
    Content.MODEL: _model,
    Content.RUN: _state,
    Content.FEATURES: _features,
    Content.SIZES: lambda _: [(WHO, "bounded", "sizes and times of encrypted messages")],
}
