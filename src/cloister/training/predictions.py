"""Predictions of a kept model for samples that stay encrypted.

    A P - A M  ->  A x of the first layer A  ->  the layers behind it  ->  an answer for each sample

It is the forward half of a training step, by the same requests: one function of every sample, which
the ledger charges as any other, and not again where it was given before. So a frozen first layer
costs a new sample what each sample of the training cost, and a repeat costs nothing. Whoever is
given the unblinding terms, a server or a trusted runtime, computes the answers. Classes and labels
have the secret numbers of the data set file (`translation` undoes them).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import ArrayLike

from cloister.authority.answer_keys import clients_fingerprint
from cloister.authority.key_service import Receiver
from cloister.authority.records import Summary
from cloister.data.dataset import EncryptedDataset
from cloister.data.id_spans import IdSpans
from cloister.data.info import DatasetInfo, Targets
from cloister.errors import EncryptionError, InputError
from cloister.plan.claims import Claims
from cloister.ring.bounds import most_at_once
from cloister.training.ciphertexts import CiphertextServer, HostedServer, LocalCiphertextServer
from cloister.training.data_owner import check_origin
from cloister.training.evaluation import Evaluated, evaluate
from cloister.training.products import Products
from cloister.training.sent import AnswersTo
from cloister.training.settings import LossName, Settings
from cloister.training.training_authority import TrainingAuthority
from cloister.training.training_claims import prediction_claims

if TYPE_CHECKING:
    from cloister.training.encrypted_model import EncryptedModel

Split = Literal["train", "test", "unlabelled", "all"]
CHUNK = 512
"""Samples of one request."""
_SAME = ("name", "shape", "classes", "targets", "encoding")
"""Fields of a description in which a model and the samples that it answers for agree."""


@dataclass(frozen=True)
class PredictionOptions:
    """The choices of a prediction, which decide who learns what.

    unblind_to   who is given the first layer's values; None: as when the model was trained
    answers_to   for whom the answers are: the server, or the clients, to whom `answers` seals them
    evaluates    compare the answers with the encrypted labels, by sums
    split        of the samples that are answered for where none are named; None: the unlabelled
                 ones, or to evaluate the test split
    allow_unbounded_leakage   the consent that a data set of mode paper needs
    patience_s   how long an authority or a ciphertext host may be away
    threads      of this process
    """

    unblind_to: Receiver | None = None
    answers_to: AnswersTo = "server"
    evaluates: bool = False
    split: Split | None = None
    allow_unbounded_leakage: bool = False
    patience_s: float = 60.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.answers_to not in get_args(AnswersTo):
            raise InputError(f"answers_to must be server or client, got {self.answers_to!r}")
        if self.split not in (None, *get_args(Split)):
            raise InputError(f"split must be {', '.join(get_args(Split))}, got {self.split!r}")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of a model for encrypted samples.

    info         the data set's description
    authority    fingerprint of its authority
    clients      fingerprint of its clients
    run          the model's
    ids          the samples
    answers      by sample: probabilities of the classes or labels, in the secret order of the file,
                 or numbers as parts of their ranges, from -1 to 1
    evaluated    how well they agree with the encrypted labels, where that was asked for
    claims       what each party could learn
    spent        the data set's budget afterwards
    server_s     seconds of the products on ciphertexts and the layers behind them
    """

    info: DatasetInfo
    authority: str
    clients: str
    run: str
    ids: Int64[np.ndarray, " n"]
    answers: Float32[np.ndarray, "n classes"]
    evaluated: Evaluated | None
    claims: Claims
    spent: Summary
    requests: int
    authority_s: float
    server_s: float


def predict(
    model: "EncryptedModel",
    dataset: EncryptedDataset,
    *,
    authority: TrainingAuthority,
    ids: ArrayLike | None = None,
    options: PredictionOptions | None = None,
    host: CiphertextServer | None = None,
    update: Callable[[int, int], None] = lambda done, total: None,
) -> Predictions:
    """Answer for encrypted samples.

    ids      the samples; None: those of the options' split
    host     with unblind_to trusted: who makes the products on ciphertexts
    update   is called with the samples that are done, and all

    Raises   EncryptionError when model, file and authority do not belong together, before any key
             is asked for; InputError for samples that cannot be answered for; BudgetError;
             AuthorityUnavailable
    """
    options = options or PredictionOptions()
    settings = replace(
        model.settings, unblind_to=options.unblind_to or model.settings.unblind_to, noise=None,
        offload_gradients=False, allow_unbounded_leakage=options.allow_unbounded_leakage,
        threads=options.threads,
    )  # fmt: skip
    info = authority.describe(dataset.name)
    check_origin(dataset, authority)
    clients = clients_fingerprint(authority.answer_key(dataset.name))
    _check_model(model, dataset, info, authority.fingerprint, clients)
    _check_consent(info, settings, host)
    chosen = _chosen(dataset, ids, authority.withdrawn(dataset.name), options)
    own: CiphertextServer = LocalCiphertextServer(dataset, threads=settings.threads)
    products = Products(
        info,
        own if host is None else HostedServer(host, own, gradients=False),
        keys=authority,
        receiver=settings.unblind_to,
        patience_s=options.patience_s,
    )
    answers = _answers(model, products, chosen, update)
    allowed = authority.summary(dataset.name).evaluations_allowed
    evaluated = None
    if options.evaluates:
        exact = settings.unblind_to == "trusted" or allowed is None
        evaluated = evaluate(products, chosen, answers, exact=exact)
    frozen = settings.first_layer == "frozen"
    return Predictions(
        info=info,
        authority=authority.fingerprint,
        clients=model.clients,
        run=model.run,
        ids=chosen,
        answers=answers,
        evaluated=evaluated,
        claims=prediction_claims(
            settings,
            info,
            rank=model.first.linear.geometry.out_channels if frozen else None,
            hosted=host is not None,
            answers_to=options.answers_to,
            evaluates=options.evaluates,
            sums=allowed,
        ),
        spent=authority.summary(dataset.name),
        requests=products.counters.requests,
        authority_s=products.counters.authority_s,
        server_s=products.counters.server_s,
    )


def _check_model(
    model: "EncryptedModel",
    dataset: EncryptedDataset,
    info: DatasetInfo,
    fingerprint: str,
    clients: str,
) -> None:
    """Refuse a model of other data than these.

    Raises   EncryptionError naming the field
    """
    if model.authority != fingerprint:
        raise EncryptionError(
            f"model: was trained on data of authority {model.authority[:16]}, not "
            f"{fingerprint[:16]}; encrypt the samples into data set {model.info.name} of that one"
        )
    for field in _SAME:
        ours, there, file = (getattr(one, field) for one in (model.info, info, dataset))
        if there != file:
            raise EncryptionError(
                f"data set {info.name}: the file and the authority describe its {field} "
                "differently; use the authority it was made with"
            )
        if ours != there:
            raise EncryptionError(
                f"model: was trained on data whose {field} is {ours}, and the {field} of "
                f"{dataset.path} is {there}; encrypt the samples into data set {model.info.name}"
            )
    if model.clients != clients:
        raise EncryptionError(
            f"data set {info.name}: was deleted and made anew since the model was trained, and its "
            "classes have other numbers; train again"
        )


def _check_consent(info: DatasetInfo, settings: Settings, host: CiphertextServer | None) -> None:
    if settings.unblind_to == "server" and info.mode != settings.mode:
        raise InputError(
            f"data set {info.name}: is registered in mode {info.mode}; predict with "
            "allow_unbounded_leakage (--allow-unbounded-leakage) in mode paper, and without it in "
            "mode budgeted"
        )
    if host is not None and settings.unblind_to != "trusted":
        raise InputError("a ciphertext host is only for unblind_to='trusted'")


def _chosen(
    dataset: EncryptedDataset,
    named: ArrayLike | None,
    withdrawn: IdSpans,
    options: PredictionOptions,
) -> Int64[np.ndarray, " n"]:
    """The samples to answer for.

    Raises   InputError where there are none, or one of them was withdrawn or has no label
    """
    split = options.split or ("test" if options.evaluates else "unlabelled")
    there = dataset.without(withdrawn)
    ids = there.ids if split == "all" else there.split[split]
    if named is not None:
        given = np.asarray(named)
        if given.dtype.kind not in "iu" or given.ndim != 1:
            raise InputError(
                f"ids: must be a list of whole numbers, got {given.dtype} {given.shape}"
            )
        ids = given.astype(np.int64)
    if not len(ids):
        raise InputError(
            f"{dataset.path}: has no samples of split {split}; choose another one (split=, "
            "--split), or encrypt some (unlabelled=True, --unlabelled)"
        )
    gone = withdrawn.holds(ids)
    if gone.any():
        raise InputError(
            f"{dataset.path}: sample {int(ids[int(np.argmax(gone))])} was withdrawn, as "
            f"{int(gone.sum()):,} of those named; leave these out"
        )
    unlabelled = np.isin(ids, dataset.unlabelled_ids)
    if options.evaluates and unlabelled.any():
        raise InputError(
            f"{dataset.path}: sample {int(ids[int(np.argmax(unlabelled))])} has no label to "
            "evaluate with; name test samples (--split test)"
        )
    return ids


def _answers(
    model: "EncryptedModel",
    products: Products,
    ids: Int64[np.ndarray, " n"],
    update: Callable[[int, int], None],
) -> Float32[np.ndarray, "n classes"]:
    info, linear = products.info, model.first.linear
    answers = np.empty((len(ids), info.classes), np.float32)
    step = min(CHUNK, most_at_once(info, linear.geometry))
    for start in range(0, len(ids), step):
        some = ids[start : start + step]
        values = model.first.values(products.forward(some, linear).integers(), info.encoding)
        scores = model.scores(values)
        answers[start : start + len(some)] = answers_of(
            scores, info.targets, loss=model.settings.loss
        )
        update(start + len(some), len(ids))
    return answers


def answers_of(
    scores: Float32[np.ndarray, "n classes"], targets: Targets, *, loss: LossName | None
) -> Float32[np.ndarray, "n classes"]:
    """Probabilities of classes and labels, or numbers, from a model's scores.

    Squared errors of classes train sigmoid outputs, each of its class alone. Divided by their sum
    they are a distribution; any other loss of classes is answered by softmax.
    """
    if targets == "numbers":
        return scores
    if targets == "labels":
        return _sigmoid(scores)
    # Logarithms of sigmoid outputs, all of which may round to 0.
    logs = -np.logaddexp(0.0, -scores.astype(np.float64)) if loss == "mse" else scores
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def _sigmoid(scores: Float32[np.ndarray, "n classes"]) -> Float32[np.ndarray, "n classes"]:
    with np.errstate(over="ignore"):  # exp of a large score is infinite, its sigmoid 0
        return np.asarray(1 / (1 + np.exp(-scores)), np.float32)
