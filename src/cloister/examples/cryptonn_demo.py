"""CryptoNN's algorithm, step by step, on 150 flowers and with a back end as it was published.

A network with one hidden layer of sigmoid units, sigmoid outputs and squared errors learns the
species of Fisher's irises. The server holds ciphertexts of samples and labels; every number that it
gets from them is compared with plain integers. The first step of training is written down: who does
what, and by which function.

This is the paper's own setting, in which nothing bounds what the server learns: keys for 8 units on
4 measurements determine every sample, and P - Y with a known P is Y.

Source   Xu, Joshi, Li, "CryptoNN" (arXiv:1904.07303), sections III and IV
"""

import csv
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from cloister.authority.permutation import label_permutation
from cloister.base.rng import KEY_BYTES, Csprng, keystream
from cloister.data.encoding import Encoding
from cloister.errors import EncryptionError
from cloister.published import ddh, lwe, mask, matrix
from cloister.ring.linear import Geometry, LinearMap

SchemeName = Literal["mask", "lwe", "ddh"]
SCHEMES: dict[SchemeName, Any] = {"mask": mask, "lwe": lwe, "ddh": ddh}
HIDDEN, BATCH, EPOCHS, RATE = 8, 40, 50, 4.0
TEST_EVERY = 5
BITS = 8
"""Of samples, weights and gradients; outputs and labels have steps of 1/127."""
BOUNDED = {
    "setup": "cloister.authority.authority.Authority",
    "encode": "cloister.data.encoder.Encoder",
    "permute": "cloister.authority.permutation.label_permutation",
    "encrypt": "cloister.training.data_owner.encrypt",
    "feed-forward": "cloister.training.products.Products.forward",
    "evaluation": "cloister.training.products.Products.labels",
    "cross-entropy": "cloister.training.losses.cross_entropy",
    "back-propagation": "cloister.training.products.Products.gradient",
    "convolution": "cloister.training.layers.EncryptedConv2d",
    "prediction": "cloister.training.predictions.predict",
}
"""Where the same step is in Cloister's own training, with bounds on what the server learns."""


GIVES = {"client": "ciphertexts", "authority": "function keys"}
VALUES = {
    "feed-forward": "X W",
    "evaluation": "P - Y",
    "cross-entropy": "<Y, -log P>",
    "back-propagation": "X^T delta",
    "convolution": "X * K",
    "prediction": "X W",
}
"""What the server gets from its ciphertexts."""


@dataclass(frozen=True)
class Step:
    """What one role did by one function; `checked` numbers were compared with plain integers."""

    step: str
    who: str
    function: str
    result: str
    checked: int = 0


@dataclass(frozen=True)
class CryptonnOutcome:
    """What the run came to; `losses` are those of the epochs."""

    scheme: str
    steps: tuple[Step, ...]
    losses: tuple[float, ...]
    checked: int
    accuracy: float
    accuracy_plain: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(eq=False)
class Record:
    """Calls a back end's functions, and writes down who calls which while it is open."""

    scheme: Any
    written: dict[tuple[str, str, str], Step] = field(default_factory=dict)
    step: str = ""
    checked: int = 0
    is_open: bool = True
    _last: tuple[str, str, str] = ("", "", "")

    def setup(self, dim: int, *, x_bound: int, y_bound: int, rng: Csprng) -> Any:  # noqa: ANN401
        """The authority's keys, for as many functions as the paper asks for."""
        unbounded = {} if self.scheme is mask else {"allow_unbounded_leakage": True}
        keys = self.scheme.setup(dim, x_bound=x_bound, y_bound=y_bound, rng=rng, **unbounded)
        self.write("authority", self.scheme.setup, "keys of all roles")
        return keys

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.scheme, name)
        who = {"encrypt": "client", "keygen": "authority", "decrypt": "server"}[
            name.removesuffix("_elements")
        ]

        def call(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            result = function(*given, **named)
            self.write(who, function, GIVES.get(who) or VALUES[self.step])
            return result

        return call

    def write(self, who: str, function: Callable[..., Any], result: str) -> None:
        """Write down one act."""
        if self.is_open:
            name = f"{function.__module__}.{function.__qualname__}"
            self._last = (self.step, who, name)
            self.written.setdefault(self._last, Step(*self._last, result))

    def check(self, found: Int64[np.ndarray, "..."], wanted: Int64[np.ndarray, "..."]) -> None:
        """Compare what the server got with plain integers.

        Raises   EncryptionError naming the step
        """
        if not np.array_equal(found, wanted):
            raise EncryptionError(f"{self.step}: the values differ from those of plain integers")
        self.checked += found.size
        if self.is_open:
            last = self.written[self._last]
            self.written[self._last] = replace(last, checked=last.checked + found.size)


@dataclass(frozen=True, eq=False)
class Flowers:
    """Measurements as integers, and species."""

    x: Int64[np.ndarray, "n 4"]
    y: Int64[np.ndarray, " n"]
    names: tuple[str, ...]

    @property
    def test(self) -> np.ndarray:
        """Every fifth flower is held out."""
        return np.asarray(np.arange(len(self.y)) % TEST_EVERY == 0)


def load_flowers() -> tuple[Flowers, Encoding]:
    """The flowers, each measurement brought to its range from -1 to 1 and encoded."""
    text = resources.files("cloister.examples").joinpath("iris.csv").read_text(encoding="ascii")
    rows = list(csv.reader(text.splitlines()))[1:]
    x = np.array([row[:-1] for row in rows], np.float64)
    names = tuple(dict.fromkeys(row[-1] for row in rows))
    low, high = x.min(axis=0), x.max(axis=0)
    encoding = Encoding.for_range(-1.0, 1.0, bits=BITS)
    values = encoding.encode(2 * (x - low) / (high - low) - 1)
    y = np.array([names.index(row[-1]) for row in rows], np.int64)
    return Flowers(values.astype(np.int64), y, names), encoding


class PaperNetwork:
    """4-8-3, sigmoid; plain NumPy behind the first layer."""

    def __init__(self, classes: int) -> None:
        words = keystream(bytes(KEY_BYTES), bytes(12), 4 * HIDDEN + HIDDEN * classes)
        draws = words / 2.0**31 - 1
        self.first: Float64[np.ndarray, "4 h"] = draws[: 4 * HIDDEN].reshape(4, HIDDEN)
        self.last: Float64[np.ndarray, "h k"] = draws[4 * HIDDEN :].reshape(HIDDEN, classes)
        self.first_bias, self.last_bias = np.zeros(HIDDEN), np.zeros(classes)

    def outputs(self, z: Float64[np.ndarray, "n h"]) -> Float64[np.ndarray, "n k"]:
        """P, from the first layer's values."""
        self.hidden = sigmoid(z + self.first_bias)
        return sigmoid(self.hidden @ self.last + self.last_bias)

    def backward(
        self, errors: Float64[np.ndarray, "n k"], p: Float64[np.ndarray, "n k"]
    ) -> Float64[np.ndarray, "n h"]:
        """Update the last layer by P - Y; gives the gradient of the first layer's values."""
        output = errors * p * (1 - p) / len(p)
        hidden = (output @ self.last.T) * self.hidden * (1 - self.hidden)
        self.last = self.last - RATE * self.hidden.T @ output
        self.last_bias = self.last_bias - RATE * output.sum(0)
        self.first_bias = self.first_bias - RATE * hidden.sum(0)
        return np.asarray(hidden)


def sigmoid(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """1 / (1 + e^-x)."""
    return np.asarray(1 / (1 + np.exp(-x)))


def integers(values: Float64[np.ndarray, "..."]) -> tuple[Int64[np.ndarray, "..."], float]:
    """Integers of 8 bits and their power-of-two step."""
    step = 2.0 ** np.ceil(np.log2(np.abs(values).max() / BOUND))
    return np.rint(values / step).astype(np.int64), float(step)


BOUND = 2 ** (BITS - 1) - 1
"""Largest integer of 8 bits; Y is 0 or BOUND, and P is a multiple of 1 / BOUND."""


class Algorithm:
    """The three roles' work on one training set; samples and labels are encrypted once."""

    def __init__(
        self, flowers: Flowers, encoding: Encoding, record: Record, *, rng: Csprng
    ) -> None:
        self._record, self._rng, self._scale = record, rng, encoding.scale
        record.step = "setup"
        bounds = {"x_bound": BOUND, "y_bound": BOUND, "rng": rng}
        self._by_row = record.setup(flowers.x.shape[1], **bounds)
        self._by_column = record.setup(BATCH, **bounds)
        record.step = "permute"
        order = label_permutation(rng.random_bytes(KEY_BYTES), len(flowers.names))
        record.write("client", label_permutation, "secret numbers of the species")
        self._names = {int(order[i]): name for i, name in enumerate(flowers.names)}
        self._x, self._y = flowers.x, np.eye(len(order), dtype=np.int64)[order[flowers.y]] * BOUND
        # Held out: every fifth. The rest in an order that mixes the species.
        train = np.flatnonzero(~flowers.test)
        train = train[np.argsort(keystream(bytes(KEY_BYTES), bytes(11) + b"\1", len(train)))]
        self.test = np.flatnonzero(flowers.test)
        self.batches = [self._encrypt(train[i : i + BATCH]) for i in range(0, len(train), BATCH)]
        self.network = PaperNetwork(len(order))

    def _encrypt(self, ids: Int64[np.ndarray, " n"]) -> dict[str, Any]:
        record, keys = self._record, self._by_row
        record.step = "encrypt"
        x, y = self._x[ids], self._y[ids]
        batch = {
            "ids": ids,
            "rows": record.encrypt(keys.encryption, x, rng=self._rng),
            "columns": record.encrypt(
                self._by_column.encryption, np.ascontiguousarray(x.T), rng=self._rng
            ),
            "labels": record.encrypt_elements(keys.encryption, y, rng=self._rng),
        }
        record.is_open = False
        return batch

    def train(self, batch: dict[str, Any]) -> float:
        """One step of training; gives its loss."""
        x, y = self._x[batch["ids"]], self._y[batch["ids"]]
        network, record = self.network, self._record
        record.step = "feed-forward"
        z = self._first_layer(batch["rows"], x)
        p = network.outputs(z)
        record.write("server", PaperNetwork.outputs, "P")
        record.step = "evaluation"
        steps = np.rint(p * BOUND).astype(np.int64)
        errors = matrix.label_errors(record, self._by_row, batch["labels"], outputs=steps)
        record.check(errors, steps - y)
        real = errors / BOUND
        record.step = "back-propagation"
        delta, step = integers(network.backward(real, p))
        record.write("server", PaperNetwork.backward, "delta")
        gradient = matrix.evaluate(record, self._by_column, batch["columns"], y=delta)
        record.check(gradient, x.T @ delta)
        network.first = network.first - RATE * gradient * self._scale * step
        return float(np.square(real).sum(1).mean() / 2)

    def _first_layer(
        self,
        rows: Any,  # noqa: ANN401  (each back end has its own)
        x: Int64[np.ndarray, "n 4"],
    ) -> Float64[np.ndarray, "n h"]:
        weights, step = integers(self.network.first)
        values = matrix.evaluate(self._record, self._by_row, rows, y=weights)
        self._record.check(values, x @ weights)
        return values * self._scale * step

    def cross_entropy(self) -> None:
        """The paper's other loss, of a few samples: the product of an encrypted label and -log P.

        A key for each sample; here costs are integers of 8 bits.
        """
        record, ids = self._record, self.test[:3]
        record.step = "cross-entropy"
        p = self.network.outputs(self._x[ids] @ self.network.first * self._scale)
        costs, _ = integers(-np.log(p))
        labels = self._y[ids] // BOUND
        found = matrix.losses(record, self._small(labels.shape[1]), labels=labels, costs=costs,
                              rng=self._rng)  # fmt: skip
        record.check(found, (labels * costs).sum(1))

    def convolution(self) -> None:
        """CryptoCNN's layer, on a picture of 6x6 pixels: the client encrypts every window."""
        record = self._record
        record.step = "convolution"
        geometry = Geometry((6, 6), 1, (4, 4), 2, kernel=(3, 3))
        draws = keystream(bytes(KEY_BYTES), bytes(12), 36 + 18).astype(np.int64) % 15 - 7
        picture, kernels = draws[:36].reshape(1, 6, 6, 1), draws[36:].reshape(2, 3, 3, 1)
        linear = LinearMap(geometry, kernels.astype(np.int16))
        found = matrix.convolve(record, self._small(9), linear, x=picture, rng=self._rng)
        wanted = matrix.windows(geometry, picture) @ kernels.reshape(2, 9).T
        record.check(found, wanted.reshape(found.shape))

    def predict(self) -> float:
        """Accuracy on encrypted flowers that were held out; the client translates the answers."""
        record = self._record
        record.step = "prediction"
        x = self._x[self.test]
        rows = record.encrypt(self._by_row.encryption, x, rng=self._rng)
        answers = self.network.outputs(self._first_layer(rows, x)).argmax(axis=1)
        record.write("server", PaperNetwork.outputs, "numbers of species")
        named = [self._names[int(answer)] for answer in answers]
        record.write("client", Algorithm.predict, f"names: {', '.join(dict.fromkeys(named))}")
        return float((answers == self._y[self.test].argmax(axis=1)).mean())

    def _small(self, dim: int) -> Any:  # noqa: ANN401
        return self._record.setup(dim, x_bound=BOUND, y_bound=BOUND, rng=self._rng)


def run(scheme: SchemeName, *, rng: Csprng, update: Callable[[int, int], None]) -> CryptonnOutcome:
    """The whole algorithm with one back end.

    update   is called with epochs done and epochs in all

    Raises   EncryptionError when a value differs from that of plain integers
    """
    started = time.perf_counter()
    flowers, encoding = load_flowers()
    record = Record(SCHEMES[scheme], step="encode")
    record.write("client", Encoding.encode, f"{len(flowers.y)} samples of {BITS} bits")
    algorithm = Algorithm(flowers, encoding, record, rng=rng)
    record.is_open = True
    losses = []
    for epoch in range(EPOCHS):
        of_epoch = []
        for batch in algorithm.batches:
            of_epoch.append(algorithm.train(batch))
            record.is_open = False
        losses.append(float(np.mean(of_epoch)))
        update(epoch + 1, EPOCHS)
    record.is_open = True
    algorithm.cross_entropy()
    algorithm.convolution()
    accuracy = algorithm.predict()
    seconds = time.perf_counter() - started
    return CryptonnOutcome(
        scheme, tuple(record.written.values()), tuple(losses), record.checked, accuracy,
        plain_accuracy(flowers, encoding, [batch["ids"] for batch in algorithm.batches]), seconds,
    )  # fmt: skip


def plain_accuracy(
    flowers: Flowers, encoding: Encoding, batches: list[Int64[np.ndarray, " n"]]
) -> float:
    """The same network, order and number of steps in the clear, without integers."""
    x, y = encoding.decode(flowers.x), np.eye(len(flowers.names))[flowers.y]
    network = PaperNetwork(y.shape[1])
    for _ in range(EPOCHS):
        for ids in batches:
            p = network.outputs(x[ids] @ network.first)
            network.first = network.first - RATE * x[ids].T @ network.backward(p - y[ids], p)
    found = network.outputs(x[flowers.test] @ network.first).argmax(axis=1)
    return float((found == flowers.y[flowers.test]).mean())
