"""Predictions for encrypted digits beside plain ones by the same model: accuracy, cost, ledger.

LeNet-5 is trained on encrypted digits, then answers for encrypted test digits. The plain side is
ONNX Runtime with the same weights on the pixels. Both are timed by turns, in processor time of one
thread; the authority's share is timed apart. For a frozen first layer, the plain accuracy is that
of the same model on exact values. A trusted runtime gets these, and a server gets them under the
noise of the data set's terms, which moves some answers: both are measured.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float32, UInt32

from benchmarks import options
from benchmarks import training_data as data
from benchmarks.environment import environment
from benchmarks.training import Bench
from benchmarks.training_data import Plain
from cloister.authority.answer_keys import clients_fingerprint
from cloister.authority.authority import Authority
from cloister.authority.key_service import Receiver
from cloister.authority.local import LocalClient
from cloister.authority.requests import Request
from cloister.base.rng import SystemRandom
from cloister.cli.console import err
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.frontends import from_torch
from cloister.graph.ort_session import runtime_session
from cloister.ring.ring_map import RingMap
from cloister.training.encrypted_model import EncryptedModel
from cloister.training.kept_model import kept_model
from cloister.training.predictions import CHUNK, PredictionOptions, Predictions

MODES = ("paper", "trusted", "frozen")
TRAIN, TEST = 60_000, 1_000
QUICK_TRAIN, QUICK_TEST = 1_280, 256
MOST_DIFFERENCE = 0.2
"""Points of accuracy."""


class TimedClient(LocalClient):
    """Takes the processor time of the authority, in the thread that asks it."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(authority)
        self.cpu_s = 0.0

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `LocalClient`."""
        started = time.thread_time()
        try:
            return super().ask(request, receiver)
        finally:
            self.cpu_s += time.thread_time() - started


class PlainNet:
    """The trained network on pixels, in ONNX Runtime."""

    def __init__(self, bench: Bench, plain: Plain, state: dict[str, Any]) -> None:
        net = bench.model(plain, "lenet5")
        net.load_state_dict(state)
        shape = plain.x.shape
        graph = from_torch(net, torch.zeros((2, shape[3], *shape[1:3])))
        self._session = runtime_session(model_bytes(graph), threads=bench.threads, optimised=True)
        (self._taken,) = graph.inputs
        values = plain.values()[plain.test].astype(np.float32).transpose(0, 3, 1, 2)
        self._x = np.ascontiguousarray(values)

    def scores(self) -> Float32[np.ndarray, "n classes"]:
        """Of all test samples, as many at a time as one request names."""
        pieces = [
            self._session.run(None, {self._taken: self._x[start : start + CHUNK]})[0]
            for start in range(0, len(self._x), CHUNK)
        ]
        return np.concatenate(pieces)


def _on_exact_values(model: EncryptedModel, plain: Plain) -> Float32[np.ndarray, "n classes"]:
    x = np.ascontiguousarray(plain.x[plain.test])
    integers = RingMap(model.first.linear).apply(x).view(np.int32)
    return model.scores(model.first.values(integers, plain.encoding))


def run_mode(bench: Bench, plain: Plain, mode: str, *, epochs: int, repeats: int) -> dict[str, Any]:
    """Train in a mode, then answer for the test digits in it."""
    trainer = bench.trainer(plain, "lenet5", mode=mode, keys=bench.keys(ledger=True))
    trainer.fit(epochs)
    client = TimedClient(bench.authority)
    clients = clients_fingerprint(client.answer_key(bench.dataset(plain, mode).name))
    model = kept_model(trainer, name="lenet5", authority=client.fingerprint, clients=clients)
    # The weights of an encrypted first layer are those of the plain one.
    net = PlainNet(bench, plain, trainer.own_model.state_dict())
    dataset, truth = bench.dataset(plain, mode), plain.y[plain.test]
    choices = PredictionOptions(
        split="test", allow_unbounded_leakage=mode == "paper", threads=bench.threads
    )

    def predict(**changes: Any) -> Predictions:
        return model.predict(dataset, authority=client, options=changes.get("options", choices))

    before = bench.authority.spent(dataset.name)
    made = predict()
    after = bench.authority.spent(dataset.name)
    predict()
    again = bench.authority.spent(dataset.name)
    times: dict[str, list[float]] = {"plain": [], "server": [], "authority": []}
    for _ in range(repeats):
        started = time.thread_time()
        clear = net.scores()
        between, asked = time.thread_time(), client.cpu_s
        predict()
        spent = client.cpu_s - asked
        times["server"].append(time.thread_time() - between - spent)
        times["plain"].append(between - started)
        times["authority"].append(spent)
    if mode == "frozen":
        clear = _on_exact_values(model, plain)
    count = len(truth)
    microseconds = {
        f"{name}_us": 1e6 * statistics.median(values) / count for name, values in times.items()
    }
    exact = made
    if mode == "frozen":
        exact = predict(options=replace(choices, unblind_to="trusted"))
    accuracy, accuracy_exact, accuracy_plain = (
        float((scores.argmax(axis=1) == truth).mean())
        for scores in (made.answers, exact.answers, clear)
    )
    rank = model.first.linear.geometry.out_elements
    allowed = rank if mode == "frozen" else (before.rank.max() if mode == "paper" else 0)
    return {
        "data": plain.source,
        "mode": mode,
        "samples": count,
        "rank": rank,
        "accuracy": accuracy,
        "accuracy_plain": accuracy_plain,
        "difference_points": 100 * (accuracy - accuracy_plain),
        "difference_without_noise_points": 100 * (accuracy_exact - accuracy_plain),
        "same_class": float((made.answers.argmax(axis=1) == clear.argmax(axis=1)).mean()),
        **microseconds,
        "server_ratio": statistics.median(
            hidden / shown for hidden, shown in zip(times["server"], times["plain"], strict=True)
        ),
        "ledger_rank": int(after.rank[made.ids].max()),
        "ledger_is_exact": bool(
            after.rank[made.ids].max() == allowed
            and (after.rank == again.rank).all()
            and (after.bits == again.bits).all()
        ),
    }


def measure(
    folder: options.Data = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few hundred samples: seconds instead of minutes.")
    ] = False,
    only: Annotated[
        str, typer.Option("--only", metavar="|".join(MODES), help="One mode. Default: all.")
    ] = "",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of training.")] = 2,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Digits to predict.")] = TEST,
    repeats: options.Repeats = 9,
    threads: options.Threads = 1,
) -> dict[str, object]:
    """Each mode of training in turn; without data, random images take the place of MNIST."""
    images = data.mnist(
        folder,
        train=QUICK_TRAIN if quick else TRAIN,
        test=QUICK_TEST if quick else samples,
    )
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as place:
        folder_of_keys = Path(place) / "authority"
        with Authority.create(folder_of_keys, rng=SystemRandom(), threads=threads) as authority:
            bench = Bench(authority, Path(place), batch=64, threads=threads, seed=0)
            for mode in MODES if not only else (only,):
                err().print(f"{mode} ...", soft_wrap=True)
                found.append(run_mode(bench, images, mode, epochs=epochs, repeats=repeats))
    return {"threads": threads, "runs": found, "environment": environment()}


def faults(found: dict[str, Any]) -> int:
    """Runs whose answers differ by more than noise explains, or whose ledger is not exact."""
    return sum(
        abs(run["difference_without_noise_points"]) > MOST_DIFFERENCE or not run["ledger_is_exact"]
        for run in found["runs"]
        if not run["data"].startswith("random images")
    )
