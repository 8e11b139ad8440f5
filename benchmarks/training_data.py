"""Data for `benchmarks.training`, in plain and encrypted to an authority in this process."""

import csv
import gzip
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int16, Int64, UInt32

from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority
from cloister.authority.enrolment import enrol
from cloister.authority.key_service import KeyService, Receiver
from cloister.authority.local import LocalClient
from cloister.authority.records import Terms
from cloister.authority.requests import Labels, Request
from cloister.base.rng import InsecureSeededRandom, SystemRandom
from cloister.data.dataset import EncryptedDataset
from cloister.data.encoding import Encoding
from cloister.data.info import DatasetInfo, Mode
from cloister.data.target_encoding import one_hot
from cloister.data.writer import Chunk, EncryptedDatasetWriter
from cloister.errors import InputError
from cloister.ring import pads

PIXELS = Encoding(1 / 255, 0.0, 9)
"""Bytes 0 to 255 as they are: nine bits with the sign."""
CHUNK = 1024
HEART_TEST_EVERY = 4


@dataclass(frozen=True, eq=False)
class Plain:
    """A data set before encryption.

    Shapes   x: (n, h, w, c), integers of `encoding`; y: classes; test: which samples are held out
    """

    name: str
    x: Int16[np.ndarray, "n h w c"]
    y: Int64[np.ndarray, " n"]
    test: Bool[np.ndarray, " n"]
    encoding: Encoding
    source: str

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.y.max()) + 1

    def values(self) -> Float64[np.ndarray, "n h w c"]:
        """What the integers stand for: what plain training reads."""
        return self.encoding.decode(self.x)


def mnist(folder: Path | None, *, train: int, test: int) -> Plain:
    """The first digits of either part; without a folder random images of the same shape.

    Raises   InputError for files that are not MNIST's
    """
    if folder is None or not (folder / "mnist").is_dir():
        return _random_images(train, test)
    parts = []
    for name, count in (("train", train), ("t10k", test)):
        images = _idx(folder / "mnist" / f"{name}-images-idx3-ubyte.gz")[:count]
        parts.append((images, _idx(folder / "mnist" / f"{name}-labels-idx1-ubyte.gz")[:count]))
    return _images("mnist", parts, source="MNIST")


def pneumonia(folder: Path, *, train: int) -> Plain:
    """Chest X-rays 28x28, normal or pneumonia."""
    with np.load(folder / "medical" / "pneumoniamnist.npz") as found:
        parts = [
            (found[f"{name}_images"][:count], found[f"{name}_labels"][:count, 0])
            for name, count in (("train", train), ("test", None))
        ]
    return _images("pneumonia", parts, source="PneumoniaMNIST")


def cifar10(folder: Path, *, train: int) -> Plain:
    """Coloured pictures 32x32 of ten classes: the first 4,000 and 1,000 of CIFAR-10."""
    with np.load(folder / "cifar10" / "cifar10_subset.npz") as found:
        parts = [
            (found[f"{name}_images"][:count], found[f"{name}_labels"][:count])
            for name, count in (("train", train), ("test", None))
        ]
    return _images("cifar10", parts, source="CIFAR-10, the first 4,000 and 1,000 pictures")


def heart(folder: Path) -> Plain:
    """13 columns of 303 patients, each between its smallest and largest value; every fourth held
    out.
    """
    text = (folder / "medical" / "heart_disease.csv").read_text(encoding="utf-8-sig")
    cells = list(csv.reader(io.StringIO(text)))[1:]
    rows = np.array([[float(cell) for cell in row] for row in cells])
    x, y = rows[:, :-1], rows[:, -1].astype(np.int64)
    low, high = x.min(axis=0), x.max(axis=0)
    encoding = Encoding.for_range(-1.0, 1.0, bits=12)
    scaled = 2 * (x - low) / (high - low) - 1
    test = np.arange(len(y)) % HEART_TEST_EVERY == 0
    encoded = encoding.encode(scaled.reshape(len(y), 1, 1, -1))
    return Plain("heart", encoded, y, test, encoding, "heart disease, 303 patients")


class MemoryKeys:
    """Every unblinding term at once, without ledger: a `KeyService` to time the server with.

    Waiting for the disk leaves the processor, and its caches, to others in the middle of a step.
    """

    def __init__(self, authority: Authority, keys: Mapping[str, bytes]) -> None:
        self._authority, self._keys = authority, keys

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService`."""
        return self._authority.describe(dataset)

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `KeyService`."""
        key = self._keys[request.dataset]
        if isinstance(request, Labels):
            classes = self.describe(request.dataset).classes
            return pads.expand(key, request.ids, (classes,), domain=pads.LABEL_DOMAIN)
        shape = request.geometry.in_shape
        masks = pads.expand(key, request.ids, shape, domain=pads.DATA_DOMAIN)
        return request.image([(slice(None), masks)], threads=1)


class TimedKeys:
    """Passes requests on and takes their time: the asking thread's, and the clock's.

    Answers are handed over as they come off a wire, in C order and read-only: an authority in this
    process would give arrays that happen to lie in memory as the server's own products do.
    """

    def __init__(self, keys: KeyService) -> None:
        self._keys = keys
        self.cpu_s = 0.0
        self.wall_s = 0.0

    def describe(self, dataset: str) -> DatasetInfo:
        """See `KeyService`."""
        return self._keys.describe(dataset)

    def ask(self, request: Request, receiver: Receiver) -> UInt32[np.ndarray, "..."]:
        """See `KeyService`."""
        wall, cpu = time.perf_counter(), time.thread_time()
        answer = np.ascontiguousarray(self._keys.ask(request, receiver))
        answer.flags.writeable = False
        self.cpu_s += time.thread_time() - cpu
        self.wall_s += time.perf_counter() - wall
        return answer


def encrypt(
    plain: Plain,
    authority: Authority,
    *,
    folder: Path,
    mode: Mode,
    budget_rank: int | None = None,
    kept: dict[str, bytes] | None = None,
) -> EncryptedDataset:
    """Register a data set in a mode, encrypt it and open it.

    kept   receives the mask key of the data set's one part under the data set's name
    """
    shape = (plain.x.shape[1], plain.x.shape[2], plain.x.shape[3])
    name = f"{plain.name}-{mode}-{budget_rank or 'default'}"
    info = DatasetInfo(name, shape, plain.classes, plain.encoding, 0, budget_rank or 0, mode)
    if budget_rank is None:
        info = replace(info, budget_rank=info.default_budget)
    agreed = Agreement(info, Terms())
    rng = SystemRandom()
    enrolment = enrol(LocalClient(authority), agreed, rng=rng)

    def register(part: str, samples: int, sha256: str, key: bytes) -> int:
        if kept is not None:
            kept[name] = key
        return enrolment.register(part, samples, sha256, key)

    path = folder / f"{name}.cloister"
    # Classes keep their names here, so that accuracies can be compared label by label.
    plainly = replace(enrolment, permutation=np.arange(plain.classes), register=register)
    writer = EncryptedDatasetWriter(path, plainly)
    chunks = (
        Chunk(
            plain.x[i : i + CHUNK],
            one_hot(plain.y[i : i + CHUNK], plain.classes),
            plain.test[i : i + CHUNK].astype(np.uint8),
        )
        for i in range(0, len(plain.x), CHUNK)
    )
    writer.append(chunks, rng=rng)
    return EncryptedDataset.open(path)


def _idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST's files.

    Raises   InputError
    """
    try:
        data = gzip.decompress(path.read_bytes())
        rank = data[3]
        sizes = np.frombuffer(data, ">u4", rank, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes.tolist())
    except (OSError, ValueError, IndexError, EOFError) as error:
        raise InputError(f"{path}: not a file of MNIST ({error})") from error


def _images(name: str, parts: list[tuple[np.ndarray, np.ndarray]], *, source: str) -> Plain:
    pixels = np.concatenate([images for images, _ in parts]).astype(np.float64) / 255
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    y = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    test = np.arange(len(y)) >= len(parts[0][1])
    return Plain(name, PIXELS.encode(pixels), y, test, PIXELS, source)


def _random_images(train: int, test: int) -> Plain:
    count = train + test
    pixels = np.frombuffer(
        InsecureSeededRandom(0).random_bytes(count * 785), np.uint8
    ).reshape(count, 785)  # fmt: skip
    parts = [
        (pixels[rows, 1:].reshape(-1, 28, 28), pixels[rows, 0] % 10)
        for rows in (slice(train), slice(train, None))
    ]
    return _images("random", parts, source="random images: MNIST is not there, see --data")
