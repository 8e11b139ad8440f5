"""Training on encrypted data beside plain PyTorch, with the same seeds and order.

Steps are timed by turns on the same batches: a plain step, then an encrypted one; the authority's
share is timed apart. Whole runs follow for the accuracies. Server and authority are one process
here, so nothing of the network is in these figures; the ledger, with its fsync, is in the whole
runs and in the authority's.

The plain loop is the fastest one found that does the same work (`PlainRun`): the same model,
optimiser, loss and counts.
"""

import math
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import options
from benchmarks import training_data as data
from benchmarks.environment import environment
from benchmarks.training_data import Plain, TimedKeys
from cloister.authority.authority import Authority
from cloister.authority.key_service import KeyService
from cloister.base.rng import SystemRandom
from cloister.cli.console import err
from cloister.data.dataset import EncryptedDataset
from cloister.data.info import Mode
from cloister.training.model_definition import define
from cloister.training.settings import Settings
from cloister.training.trainer import Trainer, epoch_order

PAPER = {
    "what": "CryptoNN, LeNet-5 on MNIST (arXiv:1904.07303)",
    "accuracy": [0.9312, 0.9549],
    "accuracy_plain": [0.9304, 0.9548],
    "encrypted_h": 57.0,
    "plain_h": 4.0,
}
MNIST_TRAIN, MNIST_TEST = 60_000, 10_000
QUICK_TRAIN, QUICK_TEST = 1_280, 512
SMALL_CNN = str(Path(__file__).with_name("small_cnn.py"))
WARM_UP = 10
LEARNING_RATE = 0.05
RATES = {"cifar10": 0.01}
"""Of data on which steps of 0.05 are so large that two plain runs of other rounding differ by as
much as a plain and an encrypted one."""
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {
        "first_layer": "trainable", "allow_unbounded_leakage": True,
    },
    "trusted": {"first_layer": "trainable", "unblind_to": "trusted"},
    "frozen": {"first_layer": "frozen"},
}  # fmt: skip


class Bench:
    """What all measurements of one command share."""

    def __init__(
        self, authority: Authority, folder: Path, *, batch: int, threads: int, seed: int
    ) -> None:
        self.authority, self.folder = authority, folder
        self.batch, self.threads, self.seed = batch, threads, seed
        torch.set_num_threads(threads)
        self._datasets: dict[tuple[str, str], EncryptedDataset] = {}
        self._mask_keys: dict[str, bytes] = {}

    def dataset(self, plain: Plain, mode: str) -> EncryptedDataset:
        """The encrypted data set, made once for each mode."""
        registered: Mode = "paper" if mode == "paper" else "budgeted"
        key = (plain.name, registered)
        if key not in self._datasets:
            self._datasets[key] = data.encrypt(
                plain, self.authority, folder=self.folder, mode=registered, kept=self._mask_keys
            )
        return self._datasets[key]

    def keys(self, *, ledger: bool) -> TimedKeys:
        """The authority's, or, without ledger, keys that are there at once."""
        return TimedKeys(
            self.authority if ledger else data.MemoryKeys(self.authority, self._mask_keys)
        )

    def trainer(self, plain: Plain, model: str, *, mode: str, keys: KeyService) -> Any:
        """An encrypted run that has not begun."""
        dataset = self.dataset(plain, mode)
        return Trainer(
            self.model(plain, model),
            dataset,
            keys=keys,
            rng=SystemRandom(),
            optimizer=partial(self.optimizer, plain),
            settings=Settings(
                batch=self.batch, seed=self.seed, threads=self.threads, **SETTINGS[mode]
            ),
        )

    def model(self, plain: Plain, model: str) -> Any:
        """A model with the seed's weights."""
        torch.manual_seed(self.seed)
        shape = (plain.x.shape[1], plain.x.shape[2], plain.x.shape[3])
        return define(model).module(shape, classes=plain.classes)

    def optimizer(self, plain: Plain, parameters: Any) -> Any:
        """Momentum, as is usual for these models; fused, which is the fastest."""
        rate = RATES.get(plain.name, LEARNING_RATE)
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)


class PlainRun:
    """The same training in the clear: the fastest plain PyTorch loop found.

    An epoch's samples are put in order once, so that a batch is a slice of them. Gathering its rows
    took 10 us more a step, `Optimizer.zero_grad` 10 to 20 us, and one that is not fused 15 us.
    """

    def __init__(self, bench: Bench, plain: Plain, model: str) -> None:
        self._bench = bench
        self._model = bench.model(plain, model)
        self._optimizer = bench.optimizer(plain, self._model.parameters())
        self._parameters = list(self._model.parameters())
        values = np.ascontiguousarray(plain.values().astype(np.float32).transpose(0, 3, 1, 2))
        self._x, self._y = torch.from_numpy(values), torch.from_numpy(plain.y)
        self._loss = torch.nn.functional.cross_entropy
        self._train, self._test = np.flatnonzero(~plain.test), np.flatnonzero(plain.test)
        self.order(self._train)

    def order(self, ids: np.ndarray) -> None:
        """Put the samples of an epoch in order."""
        places = torch.from_numpy(ids)
        self._ordered = self._x.index_select(0, places), self._y.index_select(0, places)

    def step(self, number: int) -> None:
        """One step, on batch `number` of the epoch."""
        start = number * self._bench.batch
        x, targets = (rows[start : start + self._bench.batch] for rows in self._ordered)
        for parameter in self._parameters:
            parameter.grad = None
        scores = self._model(x)
        loss = self._loss(scores, targets)
        loss.backward()
        self._optimizer.step()
        loss.item(), np.count_nonzero(scores.detach().argmax(1).numpy() == targets.numpy())

    def fit(self, epochs: int) -> list[dict[str, float]]:
        """Accuracy on the test part after every epoch, in the trainer's order."""
        found, batch = [], self._bench.batch
        for epoch in range(epochs):
            order = self._train[epoch_order(len(self._train), seed=self._bench.seed, epoch=epoch)]
            started = time.perf_counter()
            self.order(order)
            for number in range(math.ceil(len(order) / batch)):
                self.step(number)
            seconds = time.perf_counter() - started
            with torch.no_grad():
                right = self._model(self._x[self._test]).argmax(1) == self._y[self._test]
            found.append({"accuracy": float(right.float().mean()), "seconds": seconds})
        return found


def time_steps(bench: Bench, plain: Plain, model: str, *, mode: str, steps: int) -> dict[str, Any]:
    """A step in the clear, at the server and at the authority; medians.

    The server is timed with keys that are there at once (`MemoryKeys`); the authority then, in
    steps of its own, with ledger and fsync. Ratios are of processor time (of time on the clock
    with more than one thread): what the disk takes depends on the disk.
    """
    times = _time_server(bench, plain, model, mode=mode, steps=steps)
    times |= _time_authority(bench, plain, model, mode=mode, steps=steps)
    ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    quartiles = {
        f"{name}_quartiles_ms": [1e3 * q for q in statistics.quantiles(values, n=4)[::2]]
        for name, values in times.items()
    }
    return {
        "data": plain.source,
        "model": model,
        "mode": mode,
        "batch": bench.batch,
        "steps": steps,
        **{f"{name}_ms": value for name, value in ms.items()},
        # Step by step: what slows the machine down for a while slows both.
        "server_ratio": statistics.median(
            hidden / clear for hidden, clear in zip(times["server"], times["plain"], strict=True)
        ),
        "authority_ratio": ms["authority"] / ms["plain"],
        **quartiles,
    }


def _time_server(
    bench: Bench, plain: Plain, model: str, *, mode: str, steps: int
) -> dict[str, list[float]]:
    """By turns with the plain step; what making the keys takes is left out."""
    clear, batches = PlainRun(bench, plain, model), _batches(bench, plain)
    clear.order(np.concatenate(batches))
    keys = bench.keys(ledger=False)
    hidden = bench.trainer(plain, model, mode=mode, keys=keys)
    hidden.prepare()
    for ids in batches[: WARM_UP + steps]:
        # A file's pages are mapped when first read; the plain samples have been, too.
        bench.dataset(plain, mode).data(ids)
    single = bench.threads == 1
    clock = time.thread_time if single else time.perf_counter
    times: dict[str, list[float]] = {"plain": [], "server": []}
    for i in range(WARM_UP + steps):
        number = i % len(batches)
        started = clock()
        clear.step(number)
        between, asked = clock(), _asked(keys, cpu=single)
        hidden.step(batches[number])
        finished, asked = clock(), _asked(keys, cpu=single) - asked
        if i >= WARM_UP:
            times["plain"].append(between - started)
            times["server"].append(finished - between - asked)
    return times


def _time_authority(
    bench: Bench, plain: Plain, model: str, *, mode: str, steps: int
) -> dict[str, list[float]]:
    """The authority's share of a step: processor time with its writing thread, and the clock."""
    keys, batches = bench.keys(ledger=True), _batches(bench, plain)
    hidden = bench.trainer(plain, model, mode=mode, keys=keys)
    hidden.prepare()
    single = bench.threads == 1
    times: dict[str, list[float]] = {"authority": [], "authority_wall": []}
    for i in range(WARM_UP + steps):
        wall, asked = keys.wall_s, keys.cpu_s
        whole, own = time.process_time(), time.thread_time()
        hidden.step(batches[i % len(batches)])
        others = time.process_time() - whole - (time.thread_time() - own)
        asked = keys.cpu_s - asked + others
        wall = keys.wall_s - wall
        if i >= WARM_UP:
            times["authority"].append(asked if single else wall)
            times["authority_wall"].append(wall)
    return times


def _asked(keys: TimedKeys, *, cpu: bool) -> float:
    return keys.cpu_s if cpu else keys.wall_s


def _batches(bench: Bench, plain: Plain) -> list[np.ndarray]:
    """Full batches of the training samples, in the order in which they are stored."""
    order = np.flatnonzero(~plain.test).astype(np.int64)
    count = max(1, len(order) // bench.batch)
    return list(np.resize(order, (count, bench.batch)))


def run_whole(bench: Bench, plain: Plain, model: str, *, mode: str, epochs: int) -> dict[str, Any]:
    """Accuracy after every epoch, in the clear and encrypted, and the time of both."""
    clear = PlainRun(bench, plain, model).fit(epochs)
    keys = bench.keys(ledger=True)
    hidden = bench.trainer(plain, model, mode=mode, keys=keys)
    started = time.perf_counter()
    history = hidden.fit(epochs)
    wall = time.perf_counter() - started
    accuracy = [result.test_accuracy for result in history]
    difference = [
        round(100 * (found - result["accuracy"]), 3)
        for found, result in zip(accuracy, clear, strict=True)
    ]  # fmt: skip
    return {
        "data": plain.source,
        "model": Path(model).stem,
        "mode": mode,
        "rank": hidden.projection.rank if hidden.projection else None,
        "dim": hidden.info.dim,
        "accuracy_plain": [result["accuracy"] for result in clear],
        "accuracy": accuracy,
        "difference_points": difference,
        "plain_s": sum(result["seconds"] for result in clear),
        "wall_s": wall,
        "authority_s": keys.wall_s,
    }


def measure(
    folder: options.Data = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few hundred samples: seconds instead of minutes.")
    ] = False,
    only: Annotated[
        str,
        typer.Option("--only", metavar="TEXT", help="Whole runs whose name holds it: lenet5, ..."),
    ] = "",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of the MNIST models.")] = 2,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Timed steps of each.")] = 200,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per step.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and order.")] = 0,
    threads: options.Threads = 1,
) -> dict[str, object]:
    """Steps by turns, then whole runs; without data, random images take the place of MNIST."""
    steps = min(steps, 20) if quick else steps
    images = data.mnist(
        folder,
        train=QUICK_TRAIN if quick else MNIST_TRAIN,
        test=QUICK_TEST if quick else MNIST_TEST,
    )
    found: dict[str, Any] = {"threads": threads, "seed": seed, "paper": PAPER}
    with TemporaryDirectory() as place:
        authority = Authority.create(Path(place) / "authority", rng=SystemRandom(), threads=threads)
        with authority:
            bench = Bench(authority, Path(place), batch=batch, threads=threads, seed=seed)
            found["steps"] = [
                time_steps(bench, images, model, mode=mode, steps=steps)
                for model in ("lenet5", "mlp")
                for mode in ("paper", "trusted")
            ]
            found["runs"] = []
            for plain, model, mode, count in _plan(images, folder, quick=quick, epochs=epochs):
                name = f"{plain.name} {Path(model).stem} {mode}"
                if only not in name:
                    continue
                err().print(f"{name} ...", soft_wrap=True)
                try:
                    found["runs"].append(run_whole(bench, plain, model, mode=mode, epochs=count))
                except KeyboardInterrupt:
                    err().print("interrupted; what is done follows", soft_wrap=True)
                    break
    return {**found, "environment": environment()}


def _plan(
    images: Plain, folder: Path | None, *, quick: bool, epochs: int
) -> list[tuple[Plain, str, str, int]]:
    plan = [(images, "lenet5", mode, epochs) for mode in ("paper", "trusted", "frozen")]
    plan.append((images, "mlp", "paper", epochs))
    if folder is not None and (folder / "medical").is_dir():
        x_rays, heart = data.pneumonia(folder, train=640 if quick else 4708), data.heart(folder)
        for mode in ("frozen", "trusted"):
            plan.append((x_rays, "lenet5", mode, 2 if quick else 20))
            plan.append((heart, "mlp", mode, 3 if quick else 40))
    if folder is not None and (folder / "cifar10").is_dir():
        pictures = data.cifar10(folder, train=640 if quick else 4000)
        for model in ("lenet5", SMALL_CNN):
            for mode in ("paper", "trusted", "frozen"):
                plan.append((pictures, model, mode, 2 if quick else 12))
    return plan
