"""The messages of a training run, and of a prediction, and their receivers: one row for each kind,
the claims' only source.

A role learns from what it is *sent*, not from what it stores. A new kind of message adds its row
here, and a new content adds its information to the claims; a test records the messages at each
interface in runs of every mode and compares.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from cloister.data.info import Targets
from cloister.plan.claims import Role
from cloister.training.settings import Settings


class Content(Enum):
    """The content of a message that is new to its receiver."""

    NAMES = "data set, sample numbers, order, batch and layer sizes, and when"
    CIPHERTEXTS = "blinded samples and labels"
    PROJECTION = "a public function, the same for every run"
    WEIGHTS = "the first layer's weights at every step"
    OUTPUT_GRADIENTS = "each sample's gradient of the first layer's output"
    FIXED_VALUES = "values of one fixed function of each sample"
    VALUES = "values of new functions of each sample at every step"
    CLASSES = "the class of each sample, under secret names"
    LABELS = "the labels of each sample, under secret names"
    NUMBERS = "the numbers of each sample, as parts of ranges that are secret to it"
    SPENT = "how much of the budget is spent"
    TRAINING = "the whole model, which it trains"
    MODEL = "the model when the run is over, with its losses and accuracies"
    RUN = "the model, its optimiser's state, the key of the noise and the losses, during the run"
    FEATURES = "projected samples as they were unblinded"
    SIZES = "sizes and times of encrypted messages"
    KEPT_MODEL = "a model, as its training left it"
    FIRST_LAYER = "the first layer of that model, the same for every sample"
    ANSWERS = "the prediction of each sample"
    SEALED_ANSWERS = "predictions, sealed to the data set's clients"
    GUESSES = "the predicted class of each sample, and its loss for each class"
    SUMS = "sums over the labels of many samples"


TARGETS: Mapping[Targets, Content] = {
    "classes": Content.CLASSES,
    "labels": Content.LABELS,
    "numbers": Content.NUMBERS,
}


@dataclass(frozen=True)
class Message:
    """One kind of message: `kind` is the request, method, file or channel that carries it."""

    role: Role
    kind: str
    carries: tuple[Content, ...]


def sent(settings: Settings, *, hosted: bool, targets: Targets = "classes") -> tuple[Message, ...]:
    """Every kind of message of a run.

    targets  what the samples of the data set have to learn
    hosted   products on ciphertexts are made by another machine (`Trainer(server=)`)
    """
    frozen = settings.first_layer == "frozen"
    function = (Content.PROJECTION if frozen else Content.WEIGHTS, Content.NAMES)
    deltas = (Content.OUTPUT_GRADIENTS, Content.NAMES)
    messages = [
        *_always(function),
        Message(Role.AUTHORITY, "labels", (Content.NAMES,)),
        *_unblinded(settings, TARGETS[targets]),
        *_kept(settings),
    ]
    if not frozen:
        messages.append(Message(Role.AUTHORITY, "gradient", deltas))
    if hosted:
        messages.append(Message(Role.CIPHERTEXT_HOST, "data set file", (Content.CIPHERTEXTS,)))
        messages.append(Message(Role.CIPHERTEXT_HOST, "forward", function))
    if hosted and settings.offload_gradients and not frozen:
        messages.append(Message(Role.CIPHERTEXT_HOST, "gradient", deltas))
    return tuple(messages)


AnswersTo = Literal["server", "client"]
"""Who can read the answers of a prediction."""


def sent_by_prediction(
    settings: Settings, *, hosted: bool, answers_to: AnswersTo, evaluates: bool
) -> tuple[Message, ...]:
    """Every kind of message of a prediction.

    settings     those of the model, and who unblinds
    hosted       as in `sent`
    evaluates    sums over labels are asked for
    """
    frozen = settings.first_layer == "frozen"
    function = (Content.PROJECTION if frozen else Content.FIRST_LAYER, Content.NAMES)
    readable = Content.ANSWERS if answers_to == "server" else Content.SEALED_ANSWERS
    messages = [
        *_always(function),
        Message(Role.CLIENT, "answers", (Content.ANSWERS,)),
        Message(Role.ANSWERS_READER, "answers", (readable, Content.NAMES)),
    ]
    role = Role.SERVER if settings.unblind_to == "server" else Role.RUNTIME
    values = Content.FIXED_VALUES if frozen else Content.VALUES
    messages.append(Message(role, "data set file", (Content.CIPHERTEXTS, Content.NAMES)))
    messages.append(Message(role, "model", (Content.KEPT_MODEL,)))
    # Whoever has the model and these values has the answers, wherever the answers go.
    messages.append(Message(role, "forward", (values, Content.ANSWERS)))
    if evaluates:
        messages.append(Message(Role.AUTHORITY, "evaluation", (Content.GUESSES, Content.NAMES)))
        messages.append(Message(role, "evaluation", (Content.SUMS,)))
    if hosted:
        messages.append(Message(Role.CIPHERTEXT_HOST, "data set file", (Content.CIPHERTEXTS,)))
        messages.append(Message(Role.CIPHERTEXT_HOST, "forward", function))
    return tuple(messages)


def _always(function: tuple[Content, ...]) -> Iterator[Message]:
    """The messages of every use of a data set; `function` is what a forward request carries."""
    for kind in ("describe", "parts", "withdrawn", "answer_key", "summary"):
        yield Message(Role.AUTHORITY, kind, (Content.NAMES,))
    yield Message(Role.AUTHORITY, "forward", function)
    yield Message(Role.CLIENT, "data set file", (Content.CIPHERTEXTS, Content.NAMES))
    yield Message(Role.CLIENT, "summary", (Content.SPENT,))
    yield Message(Role.NETWORK, "https", (Content.SIZES,))


def _unblinded(settings: Settings, targets: Content) -> Iterator[Message]:
    """The process that trains holds the file, and receives the unblinding terms."""
    frozen = settings.first_layer == "frozen"
    role = Role.SERVER if settings.unblind_to == "server" else Role.RUNTIME
    values = Content.FIXED_VALUES if frozen else Content.VALUES
    yield Message(role, "data set file", (Content.CIPHERTEXTS, Content.NAMES))
    yield Message(role, "training", (Content.TRAINING,))
    yield Message(role, "labels", (targets,))
    yield Message(role, "forward", (values,))
    if not frozen:
        yield Message(role, "gradient", (values,))


def _kept(settings: Settings) -> Iterator[Message]:
    """The model that is handed on in the end, and the files that a disk keeps until then."""
    yield Message(Role.HOLDER, "model.json", (Content.MODEL, Content.NAMES))
    for kind in ("first-*.npz", "rest-*.onnx", "state-*.pt"):
        yield Message(Role.HOLDER, kind, (Content.MODEL,))
    yield Message(Role.FOLDER, "checkpoint.pt", (Content.RUN,))
    if settings.first_layer == "frozen":
        yield Message(Role.FOLDER, "features.f32", (Content.FEATURES,))
        yield Message(Role.FOLDER, "features.json", (Content.NAMES,))
