"""What a training run sends to whom: one row for each kind of message, the claims' only source.

A party learns from what it is *sent*, not from what it stores. So whoever adds a kind of message
adds its row here, and whoever adds a content adds what it tells (`claims`); a test records what
crosses each interface in runs of every mode and compares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from cloister.training.settings import Settings


class Party(Enum):
    """Who can receive something of a run."""

    SERVER = "training server"
    RUNTIME = "trusted runtime"
    HOST = "ciphertext host"
    AUTHORITY = "authority"
    CLIENT = "another client"
    HOLDER = "holder of the model"
    FOLDER = "reader of --checkpoint"
    NETWORK = "network"


class Content(Enum):
    """What a message carries that its receiver did not have."""

    NAMES = "data set, sample numbers, order, batch and layer sizes, and when"
    CIPHERTEXTS = "masked samples and labels"
    PROJECTION = "a public function, the same for every run"
    WEIGHTS = "the first layer's weights at every step"
    OUTPUT_GRADIENTS = "each sample's gradient of the first layer's output"
    FIXED_VALUES = "values of one fixed function of each sample"
    VALUES = "values of new functions of each sample at every step"
    CLASSES = "the class of each sample, under secret names"
    SPENT = "how much of the budget is spent"
    TRAINING = "the whole model, which it trains"
    MODEL = "the model when the run is over"
    RUN = "the model, its optimiser's state, the key of the noise and the losses, during the run"
    FEATURES = "projected samples as they were unmasked"
    SIZES = "sizes and times of encrypted messages"


@dataclass(frozen=True)
class Message:
    """One kind of message: `kind` is the request, method, file or channel that carries it."""

    party: Party
    kind: str
    carries: tuple[Content, ...]


def sent(settings: Settings, *, hosted: bool) -> tuple[Message, ...]:
    """Every kind of message of a run.

    hosted   products on ciphertexts are made by another machine (`Trainer(server=)`)
    """
    frozen = settings.first_layer == "frozen"
    function = (Content.PROJECTION if frozen else Content.WEIGHTS, Content.NAMES)
    deltas = (Content.OUTPUT_GRADIENTS, Content.NAMES)
    messages = [
        Message(Party.AUTHORITY, "describe", (Content.NAMES,)),
        Message(Party.AUTHORITY, "parts", (Content.NAMES,)),
        Message(Party.AUTHORITY, "summary", (Content.NAMES,)),
        Message(Party.AUTHORITY, "labels", (Content.NAMES,)),
        Message(Party.AUTHORITY, "forward", function),
        Message(Party.CLIENT, "data set file", (Content.CIPHERTEXTS, Content.NAMES)),
        Message(Party.CLIENT, "summary", (Content.SPENT,)),
        Message(Party.NETWORK, "https", (Content.SIZES,)),
        *_unmasked(settings),
        *_kept(settings),
    ]
    if not frozen:
        messages.append(Message(Party.AUTHORITY, "gradient", deltas))
    if hosted:
        messages.append(Message(Party.HOST, "data set file", (Content.CIPHERTEXTS,)))
        messages.append(Message(Party.HOST, "forward", function))
    if hosted and settings.offload_gradients and not frozen:
        messages.append(Message(Party.HOST, "gradient", deltas))
    return tuple(messages)


def _unmasked(settings: Settings) -> Iterator[Message]:
    """Whoever trains holds the file, and receives the unmasking terms."""
    frozen = settings.first_layer == "frozen"
    party = Party.SERVER if settings.unmask_to == "server" else Party.RUNTIME
    values = Content.FIXED_VALUES if frozen else Content.VALUES
    yield Message(party, "data set file", (Content.CIPHERTEXTS, Content.NAMES))
    yield Message(party, "training", (Content.TRAINING,))
    yield Message(party, "labels", (Content.CLASSES,))
    yield Message(party, "forward", (values,))
    if not frozen:
        yield Message(party, "gradient", (values,))


def _kept(settings: Settings) -> Iterator[Message]:
    """What is handed on in the end, and what a disk keeps meanwhile."""
    yield Message(Party.HOLDER, "model", (Content.MODEL,))
    yield Message(Party.FOLDER, "checkpoint.pt", (Content.RUN,))
    if settings.first_layer == "frozen":
        yield Message(Party.FOLDER, "features.f32", (Content.FEATURES,))
        yield Message(Party.FOLDER, "features.json", (Content.NAMES,))
