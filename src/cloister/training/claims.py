"""What a training run tells whom, derived from its settings and what was released.

The rows follow from the algorithm, not from measurements; `cloister audit encrypted` attacks a
release log and so tests them.
"""

from dataclasses import dataclass
from typing import Literal

from cloister.fe.keyservice import DatasetInfo
from cloister.training.noise import epsilon
from cloister.training.trainer import Settings, Trainer

Severity = Literal["nothing", "bounded", "everything"]


@dataclass(frozen=True)
class Claim:
    """What the server could learn about one thing."""

    about: str
    severity: Severity
    learns: str


def claims(trainer: Trainer, *, epochs: int) -> list[Claim]:
    """The server's possible knowledge after `epochs` epochs."""
    settings, info = trainer.settings, trainer.info
    rank = None if trainer.projection is None else trainer.projection.rank
    found = [_samples(settings, info, rank), _labels(settings), _model(settings)]
    found.append(
        Claim(
            "who trains with what",
            "bounded",
            "sizes, the split, and which client each sample came from; clients shuffle their order",
        )
    )
    if settings.noise is not None:
        value = epsilon(settings.noise, epochs=epochs)
        found.append(
            Claim(
                "noise",
                "bounded",
                f"the model is ({value:.3g}, {settings.noise.delta:g})-differentially private: "
                "one training sample replaced; the printed losses and accuracies are not",
            )
        )
    return found


def _samples(settings: Settings, info: DatasetInfo, rank: int | None) -> Claim:
    about = "a sample's values"
    if settings.unmask_to == "trusted":
        return Claim(about, "nothing", "nothing: all it holds and answers is uniformly random")
    if settings.mode == "paper":
        return Claim(
            about,
            "everything",
            f"every value: no budget, and {info.dim} independent functions determine a sample",
        )
    if rank is not None:
        return Claim(
            about,
            "bounded",
            f"{rank} fixed linear functions of {info.dim} values ({rank / info.dim:.0%}), blurred "
            "as its owner decided, the same for any number of runs: enough for a likeness",
        )
    return Claim(
        about,
        "bounded",
        f"at most {info.budget_rank} linear functions of {info.dim} values "
        f"({info.budget_rank / info.dim:.0%}); beyond, the authority refuses",
    )


def _labels(settings: Settings) -> Claim:
    if settings.unmask_to == "server":
        return Claim(
            "labels",
            "everything",
            "the class of every sample, under names only the clients can translate",
        )
    if settings.offload_gradients:
        return Claim("labels", "everything", "every label: the output gradients show them")
    return Claim("labels", "nothing", "nothing directly; see the model")


def _model(settings: Settings) -> Claim:
    about = "the model"
    if settings.unmask_to == "server":
        return Claim(about, "everything", "all weights: it trains the model")
    if settings.first_layer == "frozen":
        return Claim(about, "nothing", "only the fixed projection")
    steps = (
        "where it is another machine, the first layer's weights at every step; their differences "
        "are gradients of batches"
    )
    if settings.offload_gradients:
        steps += ", and each sample's output gradient, which tells its active units"
    return Claim(about, "bounded", steps)
