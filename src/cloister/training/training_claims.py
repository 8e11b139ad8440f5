"""The claims of a training run, and of a prediction, derived from the messages that it sends
(`sent`) and nothing else.

The claims follow from the algorithm, not from measurements; `cloister audit training` attacks logs
of the messages to a role, and so tests them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cloister.authority.label_sums import ANSWER_BITS
from cloister.data.feature_noise import epsilon
from cloister.data.info import DatasetInfo
from cloister.plan.claims import EXTENTS, Claims, Extent, Role, Statement, Strength, Verb, state
from cloister.training.sent import AnswersTo, Content, Message, sent, sent_by_prediction
from cloister.training.settings import Settings

if TYPE_CHECKING:
    # A prediction has claims too, and needs no PyTorch.
    from cloister.training.trainer import Trainer

NOTHING, BOUNDED, EVERYTHING = Extent

VALUES, LABELS, MODEL = "a sample's values", "labels", "the model"
WHO, RUN = "who trains with what", "the run"
ANSWERS, PREDICTION = "a sample's prediction", "the prediction"


@dataclass(frozen=True)
class _Run:
    """The facts besides the messages that the claims of a run depend on.

    sums   sums over labels that a server gets; None: any number, as it may have the labels
    """

    settings: Settings
    info: DatasetInfo
    rank: int | None
    epsilon: float | None
    sums: int | None = None

    @property
    def private(self) -> str | None:
        """The differential privacy of every weight, where there is any."""
        if self.epsilon is None or self.settings.noise is None:
            return None
        delta = self.settings.noise.delta
        return f"({self.epsilon:.3g}, {delta:g})-differentially private, one sample replaced"


class Learned(NamedTuple):
    """What one content tells about one thing; `attacked` where only attacks show it."""

    about: str
    extent: Extent
    learns: str
    attacked: bool = False


Describe = Callable[[_Run], Sequence[Learned]]
"""What one content tells."""


def claims(trainer: "Trainer", *, epochs: int) -> Claims:
    """What every role could know after `epochs` epochs, and what it can do."""
    settings = trainer.settings
    noise = settings.noise
    run = _Run(
        settings,
        trainer.info,
        None if trainer.projection is None else trainer.projection.rank,
        None if noise is None else epsilon(noise, epochs=epochs),
    )
    subject = (
        f"training on {trainer.info.name}, first layer {settings.first_layer}, unblinded to "
        f"{settings.unblind_to}, mode {settings.mode}"
    )
    messages = sent(settings, hosted=trainer.hosted, targets=trainer.info.targets)
    return Claims(
        subject, tuple(_statements(messages, run, {role: (RUN, CAN[role]) for role in CAN}))
    )


def prediction_claims(
    settings: Settings,
    info: DatasetInfo,
    *,
    rank: int | None,
    hosted: bool,
    answers_to: AnswersTo,
    evaluates: bool,
    sums: int | None,
) -> Claims:
    """What every role could know of encrypted samples that a model answers for.

    settings   those of the model, and who unblinds; the others are as in `sent_by_prediction`
    rank       of the model's frozen first layer, if it has one
    sums       sums over labels that the data set's owner allows a server; None: it may have labels
    """
    run = _Run(settings, info, rank, None, sums)
    subject = (
        f"prediction on {info.name}, first layer {settings.first_layer}, unblinded to "
        f"{settings.unblind_to}, answers to the {answers_to}, mode {info.mode}"
    )
    messages = sent_by_prediction(
        settings, hosted=hosted, answers_to=answers_to, evaluates=evaluates
    )
    can = {role: (PREDICTION, what) for role, what in CAN_PREDICTING.items()}
    return Claims(subject, tuple(_statements(messages, run, can)))


_Can = tuple[Extent, str, str]


def _statements(
    messages: Sequence[Message], run: _Run, can: Mapping[Role, tuple[str, _Can]]
) -> Iterator[Statement]:
    for role in Role:
        contents = dict.fromkeys(c for m in messages if m.role is role for c in m.carries)
        if contents:
            yield from _of_role(role, list(contents), run)
        if contents and role in can:
            about, what = can[role]
            yield state(role, Verb.CAN, about, *what)


def _of_role(role: Role, contents: Sequence[Content], run: _Run) -> Iterator[Statement]:
    learned: dict[str, list[Learned]] = {VALUES: [], LABELS: []}
    for content in contents:
        for one in TELLS[content](run):
            learned.setdefault(one.about, []).append(one)
    for about, parts in learned.items():
        worst = max([NOTHING, *(part.extent for part in parts)], key=EXTENTS.index)
        worst_parts = [part for part in parts if part.extent is worst]
        texts = dict.fromkeys(part.learns for part in worst_parts)
        attacked = any(part.attacked for part in worst_parts)
        yield state(
            role, Verb.LEARNS, about, worst, "; ".join(texts) or "nothing",
            _assumes(role, about, worst),
            shown=Strength.EMPIRICAL if attacked else Strength.PROVED,
        )  # fmt: skip


CAN: Mapping[Role, _Can] = {
    Role.SERVER: (EVERYTHING, "train wrongly, and keep or sell the model", ""),
    Role.RUNTIME: (EVERYTHING, "train wrongly, and keep or sell the model", ""),
    Role.CIPHERTEXT_HOST: (EVERYTHING, "change every product unnoticed, or answer none", ""),
    Role.AUTHORITY: (EVERYTHING, "issue keys beyond every budget, or none", ""),
    Role.CLIENT: (BOUNDED, "poison the model, and tell the server the classes' names", ""),
    Role.NETWORK: (BOUNDED, "delay and cut connections", "TLS 1.3"),
}
"""What a role can do to a run (docs/threat-model.md)."""
CAN_PREDICTING: Mapping[Role, _Can] = {
    Role.SERVER: (EVERYTHING, "answer wrongly, and keep or sell the answers", ""),
    Role.RUNTIME: (EVERYTHING, "answer wrongly, and keep or sell the answers", ""),
    Role.CIPHERTEXT_HOST: (EVERYTHING, "change every answer unnoticed, or give none", ""),
    Role.AUTHORITY: (EVERYTHING, "issue keys beyond every budget, or none", ""),
    Role.CLIENT: (BOUNDED, "tell the server the classes' names, and others the answers", ""),
    Role.NETWORK: (BOUNDED, "delay and cut connections", "TLS 1.3"),
}
"""What a role can do to a prediction."""


def _assumes(role: Role, about: str, extent: Extent) -> str:
    """Only what hides something assumes something."""
    if extent is EVERYTHING:
        return "it is trusted: every other line rests on that" if role is Role.RUNTIME else ""
    if about not in (VALUES, LABELS):
        return ""
    if role is Role.NETWORK:
        return "TLS 1.3"
    if role is Role.AUTHORITY:
        return "it never holds the data set file: with that, it reads every sample"
    if role is Role.CIPHERTEXT_HOST and extent is BOUNDED:
        return "nothing of its answers; each time that it kills the run counts as one more epoch"
    if role is Role.CIPHERTEXT_HOST:
        return "nothing of its answers; it pools nothing with the authority"
    if role is Role.ANSWERS_READER and extent is NOTHING:
        return "X25519 or ML-KEM-768 holds, and AES-256-GCM"
    if role in (Role.HOLDER, Role.FOLDER, Role.ANSWERS_READER):
        return ""
    return "it pools nothing with the authority"


def _frozen_values(run: _Run) -> Sequence[Learned]:
    rank, dim = run.rank or 0, run.info.dim
    if run.settings.unblind_to == "trusted":
        return [Learned(VALUES, EVERYTHING, "any function that it asks for, exactly")]
    if run.settings.mode == "paper":
        return [Learned(VALUES, EVERYTHING, _unbounded(run))]
    if rank >= dim:
        return [Learned(VALUES, EVERYTHING, _all_of(run))]
    text = (
        f"{rank} fixed linear functions of {dim} values ({rank / dim:.0%}), with noise as its "
        "owner decided, the same for any number of runs: enough for a likeness, and for more "
        "where the owner allowed exact values"
    )
    return [Learned(VALUES, BOUNDED, text)]


def _values(run: _Run) -> Sequence[Learned]:
    budget, dim = run.info.budget_rank, run.info.dim
    if run.settings.unblind_to == "trusted":
        return [Learned(VALUES, EVERYTHING, "any function that it asks for, exactly")]
    if run.settings.mode == "paper":
        return [Learned(VALUES, EVERYTHING, _unbounded(run))]
    if budget >= dim:
        return [Learned(VALUES, EVERYTHING, _all_of(run))]
    text = (
        f"at most {budget} linear functions of {dim} values ({budget / dim:.0%}); beyond, the "
        "authority refuses"
    )
    return [Learned(VALUES, BOUNDED, text)]


def _unbounded(run: _Run) -> str:
    return f"every value: no budget, and {run.info.dim} independent functions determine a sample"


def _all_of(run: _Run) -> str:
    dim = run.info.dim
    return f"no bound: {dim} independent functions of {dim} values determine a sample"


def _weights(run: _Run) -> Sequence[Learned]:
    if run.private is not None:
        text = f"what weights at every step tell: they are {run.private}"
        return [
            Learned(VALUES, BOUNDED, text),
            Learned(LABELS, BOUNDED, text),
            Learned(MODEL, EVERYTHING, "the first layer's weights at every step"),
        ]
    text = (
        "no bound: differences of the weights are gradients of batches; a batch of one is its "
        "sample, and answers that switch the units of all others off make any batch one"
    )
    return [
        Learned(VALUES, EVERYTHING, text, attacked=True),
        Learned(
            LABELS, EVERYTHING, "no bound: gradients of batches tell their classes", attacked=True
        ),
        Learned(MODEL, EVERYTHING, "the first layer's weights at every step"),
    ]


def _output_gradients(_: _Run) -> Sequence[Learned]:
    text = (
        "no bound, with noise or without: with the weights before and after, each sample's output "
        "gradient is a linear system for the batch, solved where the layer is as wide as that"
    )
    return [
        Learned(VALUES, EVERYTHING, text, attacked=True),
        Learned(
            LABELS,
            EVERYTHING,
            "every label: the output gradients show them, and active units",
            attacked=True,
        ),
    ]


def _model(run: _Run) -> Sequence[Learned]:
    weights = Learned(MODEL, EVERYTHING, "all weights")
    if run.private is not None:
        text = f"the model is {run.private}; the printed losses and accuracies are not"
        return [Learned(VALUES, BOUNDED, text), Learned(LABELS, BOUNDED, text), weights]
    unbounded = "no bound: a model tells of the samples that it was trained on"
    labels = Learned(LABELS, EVERYTHING, unbounded, attacked=True)
    if run.rank is not None and run.rank < run.info.dim:
        text = f"at most the {run.rank} functions of each sample that it was trained on"
        return [Learned(VALUES, BOUNDED, text), labels, weights]
    return [Learned(VALUES, EVERYTHING, unbounded, attacked=True), labels, weights]


def _state(run: _Run) -> Sequence[Learned]:
    """The state of a run is for its maker alone."""
    weights = Learned(MODEL, EVERYTHING, "all weights, at every checkpoint")
    if run.rank is not None:
        return [*_model(run)[:2], weights]
    text = (
        "no bound: neighbouring checkpoints and the optimiser's state hold gradients of batches, "
        "and the key of the noise that comes next takes it away"
    )
    shown = [Learned(about, EVERYTHING, text, attacked=True) for about in (VALUES, LABELS)]
    return [*shown, weights]


def _classes(run: _Run) -> Sequence[Learned]:
    text = "the class of every sample, under names only the clients can translate"
    return [Learned(LABELS, EVERYTHING, text)]


def _labels(_: _Run) -> Sequence[Learned]:
    text = "which labels every sample has, under names only the clients can translate"
    return [Learned(LABELS, EVERYTHING, text)]


def _numbers(_: _Run) -> Sequence[Learned]:
    text = (
        "the numbers of every sample, as parts of a range from -1 to 1; only the clients and the "
        "authority know the range and the unit, which a number that is known otherwise can tell"
    )
    return [Learned(LABELS, EVERYTHING, text)]


def _features(run: _Run) -> Sequence[Learned]:
    if run.settings.unblind_to == "server":
        return _frozen_values(run)
    if run.rank == run.info.dim:
        return [Learned(VALUES, EVERYTHING, _all_of(run))]
    text = f"{run.rank} linear functions of {run.info.dim} values, exactly"
    return [Learned(VALUES, BOUNDED, text)]


def _names(_: _Run) -> Sequence[Learned]:
    text = "sizes, the split, and which client each sample came from; clients shuffle their order"
    return [Learned(WHO, BOUNDED, text)]


def _projection(_: _Run) -> Sequence[Learned]:
    return [Learned(MODEL, NOTHING, "only the fixed projection")]


_TOLD = "what its prediction tells of it"


def _answers(_: _Run) -> Sequence[Learned]:
    text = (
        "the prediction of every sample: it follows from the model and the first layer's values; "
        "sealing protects answers at rest and on the way, not from who computes them"
    )
    return [Learned(ANSWERS, EVERYTHING, text), Learned(VALUES, BOUNDED, _TOLD)]


def _guesses(_: _Run) -> Sequence[Learned]:
    text = "the prediction of every sample that is evaluated, by name: it holds the label key"
    return [Learned(ANSWERS, EVERYTHING, text), Learned(VALUES, BOUNDED, _TOLD)]


def _sums(run: _Run) -> Sequence[Learned]:
    if run.settings.unblind_to == "trusted" or run.sums is None:
        return [Learned(LABELS, EVERYTHING, "sums over labels, exactly: it may have every label")]
    text = (
        f"at most {ANSWER_BITS} bits of all labels together in each of {run.sums} sums, whatever "
        "it asks: enough for an accuracy, or for a few labels of its choice"
    )
    return [Learned(LABELS, BOUNDED, text)]


TELLS: Mapping[Content, Describe] = {
    Content.NAMES: _names,
    Content.CIPHERTEXTS: lambda _: [
        Learned(VALUES, NOTHING, "nothing: every ciphertext is uniformly random"),
        Learned(LABELS, NOTHING, "nothing: every ciphertext is uniformly random"),
    ],
    Content.PROJECTION: _projection,
    Content.WEIGHTS: _weights,
    Content.OUTPUT_GRADIENTS: _output_gradients,
    Content.FIXED_VALUES: _frozen_values,
    Content.VALUES: _values,
    Content.CLASSES: _classes,
    Content.LABELS: _labels,
    Content.NUMBERS: _numbers,
    Content.SPENT: lambda _: [
        Learned(WHO, BOUNDED, "how much of the budget is spent, and requests")
    ],
    Content.TRAINING: lambda _: [Learned(MODEL, EVERYTHING, "all weights: it trains the model")],
    Content.MODEL: _model,
    Content.RUN: _state,
    Content.FEATURES: _features,
    Content.KEPT_MODEL: lambda _: [
        Learned(MODEL, EVERYTHING, "all weights; the model's own claims say what they tell")
    ],
    Content.FIRST_LAYER: lambda _: [
        Learned(MODEL, EVERYTHING, "its first layer; the model's own claims say what it tells"),
        Learned(VALUES, NOTHING, "nothing of the samples that are predicted"),
    ],
    Content.ANSWERS: _answers,
    Content.SEALED_ANSWERS: lambda _: [
        Learned(ANSWERS, NOTHING, "nothing: only a client of the data set can open them")
    ],
    Content.GUESSES: _guesses,
    Content.SUMS: _sums,
    Content.SIZES: lambda _: [Learned(WHO, BOUNDED, "sizes and times of encrypted messages")],
}
