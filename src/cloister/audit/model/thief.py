"""A thief of a model: asks it, trains or solves for the hidden layers, infers its members."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Shaped

from cloister.audit.model import linear_recovery, surrogate
from cloister.audit.model.membership import (
    Membership,
    auc,
    label_scores,
    loss_scores,
    membership,
    ratio_scores,
)
from cloister.audit.model.theft_data import TheftData
from cloister.audit.model.theft_progress import Stolen, TheftJob, seeded
from cloister.audit.model.theft_report import HeadRecovery
from cloister.audit.model.theft_settings import TheftSettings
from cloister.audit.model.victim import ExposedPart, Victim, probabilities
from cloister.errors import InputError

Samples = Shaped[np.ndarray, "n ..."]
Logits = Float32[np.ndarray, "n c"]


class Thief:
    """Attacks one victim with one set of data.

    Raises   InputError when victim, data and settings do not fit together
    """

    def __init__(self, victim: Victim, data: TheftData, settings: TheftSettings) -> None:
        self.victim, self._data, self._settings = victim, data, settings
        self._check()
        self.true = victim.logits(data.evaluated.x)
        self._last: tuple[int, _Split] | None = None

    def part(self, hidden_layers: int) -> ExposedPart:
        """A split; with 0 hidden layers nothing is exposed and the architecture is unknown."""
        return self._split(hidden_layers).exposed

    def steal(self, job: TheftJob) -> tuple[Stolen, ...]:
        """One theft by every attack there is for it, evaluated."""
        split = self._split(job.hidden_layers)
        x = self._queries(job)
        network = self._network(job)
        if not job.queries:
            return (self._trained("none", network, split),)
        values = surrogate.tensors(split.exposed.values(x))
        networks: dict[str, surrogate.Surrogate] = {"trained": network}
        if job.hidden_layers:
            networks["linear probe"] = surrogate.LinearProbe(values, self.victim.classes)
        targets = torch.from_numpy(self._answers(x))
        for one in networks.values():
            generator = job.generator()
            surrogate.fit(one, values, targets, self._settings, generator=generator)
        found = [self._trained(attack, one, split) for attack, one in networks.items()]
        part = split.exposed
        equations = part.is_linear and self._settings.answers == "probabilities"
        if job.hidden_layers and equations and len(x) > part.features:
            head = linear_recovery.recover(_flat(part.values(x)), targets.numpy())
            found += [] if head is None else [self._solved(head, split)]
        return tuple(found)

    def recover(self, hidden_layers: int) -> HeadRecovery | None:
        """The exact attack with as many queries as it needs; None where it has no equations."""
        split = self._split(hidden_layers)
        part = split.exposed
        if not part.is_linear or self._settings.answers == "label":
            return None
        chosen = self._chosen_values(split, 2 * (part.features + 1))
        answers = probabilities(part.logits(chosen))
        head = linear_recovery.recover(_flat([chosen]), answers)
        if head is None:
            return None
        found, exact = head.logits(_flat(split.evaluated)), _centred(self.true)
        weights = _centred(part.weights()) if head.is_determined else None
        return HeadRecovery(
            part.features,
            len(chosen),
            head.rank,
            None if weights is None else _relative(head.weights[:-1], weights),
            _relative(found, exact),
            float((found.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        )

    def infer(self) -> Iterator[Membership]:
        """Attacks on membership, from the victim's own answers."""
        members, others = self._data.members, self._data.evaluated
        if members is None:
            return
        inside, outside = self._answers(members.x), self._answers(others.x)
        if self._settings.answers == "label":
            yield membership(
                "right label", label_scores(inside, members.y), label_scores(outside, others.y)
            )
            return
        yield membership(
            "loss threshold", loss_scores(inside, members.y), loss_scores(outside, others.y)
        )
        own = self._answers(self._data.thief)
        yield membership(
            "likelihood ratio",
            ratio_scores(inside, members.y, own),
            ratio_scores(outside, others.y, own),
        )

    def _check(self) -> None:
        most, there = self._settings.queries[-1], len(self._data.thief)
        if most > there:
            raise InputError(
                f"queries: {most}, but the thief has {there} samples; give fewer, or more of the "
                "thief's own with --thief-data"
            )
        for hidden in self._settings.splits or ():
            if hidden > self.victim.layers:
                raise InputError(
                    f"splits: {hidden} hidden layers, but the model has {self.victim.layers}"
                )
        for part in (self._data.evaluated, self._data.members):
            if part is not None and int(part.y.max()) >= self.victim.classes:
                raise InputError(
                    f"the data: class {int(part.y.max())}, but the model has "
                    f"{self.victim.classes} classes, numbered from 0"
                )

    def _network(self, job: TheftJob) -> surrogate.Surrogate:
        if job.hidden_layers == 0:
            shape = self._data.thief.shape[1:]
            return surrogate.SmallNetwork(shape, self.victim.classes, generator=job.generator())
        part = self.part(job.hidden_layers)
        return surrogate.HiddenLayers(part.hidden, part.known, generator=job.generator())

    def _trained(self, attack: str, network: surrogate.Surrogate, split: "_Split") -> Stolen:
        members = self._data.members
        inside = None
        if members is not None:
            inside = surrogate.predict(network, split.exposed.values(members.x))
        return self._scored(attack, surrogate.predict(network, split.evaluated), inside)

    def _solved(self, head: linear_recovery.LinearHead, split: "_Split") -> Stolen:
        members = self._data.members
        inside = None
        if members is not None:
            inside = head.logits(_flat(split.exposed.values(members.x)))
        return self._scored("solved", head.logits(_flat(split.evaluated)), inside)

    def _scored(self, attack: str, found: np.ndarray, inside: np.ndarray | None) -> Stolen:
        """A surrogate by its logits for the evaluated samples, and for the members."""
        labels = found.argmax(axis=1)
        return Stolen(
            attack,
            float((labels == self._data.evaluated.y).mean()),
            float((labels == self.true.argmax(axis=1)).mean()),
            None if inside is None else self._members_of(inside, found),
        )

    def _members_of(self, inside: np.ndarray, outside: np.ndarray) -> float | None:
        """AUC of the threshold attack on a surrogate's logits."""
        members, others = self._data.members, self._data.evaluated
        if members is None:
            return None
        return auc(
            loss_scores(probabilities(inside), members.y),
            loss_scores(probabilities(outside), others.y),
        )

    def _split(self, hidden_layers: int) -> "_Split":
        if self._last is None or self._last[0] != hidden_layers:
            exposed = self.victim.split(hidden_layers or self.victim.layers)
            split = _Split(exposed, exposed.values(self._data.evaluated.x))
            self._last = (hidden_layers, split)
        return self._last[1]

    def _queries(self, job: TheftJob) -> Samples:
        """Samples that a seed chooses; a smaller budget's are among those of a larger one."""
        generator = seeded(f"queries {job.seed}")
        order = torch.randperm(len(self._data.thief), generator=generator)
        return np.asarray(self._data.thief[order.numpy()[: job.queries]])

    def _chosen_values(self, split: "_Split", count: int) -> Float32[np.ndarray, "n ..."]:
        """Random values of ordinary size to enter the hidden part, some smaller.

        Small ones have answers far from 0 and 1, whatever the weights are.
        """
        (like,) = split.evaluated
        noise = torch.randn((count, *like.shape[1:]), generator=seeded("recovery")).numpy()
        size = np.sqrt(np.mean(np.square(like), dtype=np.float64))
        sizes = size * 0.25 ** (np.arange(count) % 4)
        return np.asarray(noise * sizes.reshape(-1, *(1,) * (like.ndim - 1)), np.float32)

    def _answers(self, x: Samples) -> Logits:
        """What the victim answers: probabilities, or ones at its labels."""
        if not len(x):
            return np.zeros((0, self.victim.classes), np.float32)
        logits = self.victim.logits(x)
        if self._settings.answers == "probabilities":
            return probabilities(logits)
        return np.asarray(np.eye(self.victim.classes, dtype=np.float32)[logits.argmax(axis=1)])


class _Split:
    """A split, with what enters its hidden part for the evaluated samples."""

    def __init__(self, exposed: ExposedPart, evaluated: list[Samples]) -> None:
        self.exposed, self.evaluated = exposed, evaluated


def _flat(values: Sequence[Samples]) -> Float32[np.ndarray, "n d"]:
    (first,) = values
    return np.asarray(first.reshape(len(first), -1), np.float32)


def _centred(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows - rows.mean(axis=1, keepdims=True), np.float64)


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-300))
