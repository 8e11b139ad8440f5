"""Audits of a small model with attacks whose outcome is known, for tests of what is around them.

Pads are seeded, so that all audits have one blinded transcript and none is broken by chance.

`python small_audits.py FOLDER` makes one in a process of its own.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np

import nets
from cloister.audit.input import SplitSettings, split_audit
from cloister.audit.input.split_images import read_split_images
from cloister.base.rng import InsecureSeededRandom
from cloister.graph.graph import Graph
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan.split_scores import ATTACKS

IMAGES, PUBLIC = 200, 500


@cache
def graph() -> Graph:
    """Two convolutions and two dense layers on images (1, 8, 8)."""
    net = nets.Net(3)
    x = net.op("Relu", net.conv(net.input("image", 1, 8, 8), 1, 4, pads=[1, 1, 1, 1]))
    x = net.op("Relu", net.conv(x, 4, 4, pads=[1, 1, 1, 1]))
    x = net.op("Flatten", net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = net.op("Relu", net.gemm(x, 64, 12))
    return prepare(from_model(net.model(net.gemm(x, 12, 5)), name="small"))


def write_images(path: Path, *, count: int = IMAGES + PUBLIC, **arrays: np.ndarray) -> Path:
    """An .npz of smooth random images (n, 8, 8), or of other arrays."""
    rng = np.random.default_rng(5)
    coarse = rng.random((count, 4, 4))
    x = np.rint(255 * coarse.repeat(2, axis=1).repeat(2, axis=2)).astype(np.uint8)
    np.savez(path, **(arrays or {"x": x}))
    return path


def images(folder: Path):
    """Images as an audit takes them."""
    return read_split_images(graph(), write_images(folder / "images.npz"), attacked=IMAGES)


@dataclass(frozen=True)
class KnownAttack:
    """Reads images where they are sent as they are, and guesses with noise everywhere else.

    `leaks` names a value's shape from which it reads images as well.
    """

    name: str
    leaks: tuple[int, ...] | None = None

    def fit(self, knowledge, *, seed, effort):
        return _Fitted(self, knowledge, seed)


@dataclass(frozen=True)
class _Fitted:
    attack: KnownAttack
    knowledge: object
    seed: int

    def reconstruct(self, view):
        shape, value = self.knowledge.image_shape, view.values[0]
        if value.shape[1:] == shape:
            return np.clip(value, 0, 1)
        if value.shape[1:] == self.attack.leaks:
            return np.clip(value.mean(axis=1, keepdims=True), 0, 1)
        noise = np.random.default_rng(self.seed).normal(size=(view.count, *shape))
        strength = 0.02 if self.attack.name == "ridge" else 0.01
        guess = self.knowledge.blind_guess + strength * noise
        return np.clip(guess, 0, 1).astype(np.float32)


HARMLESS = {name: KnownAttack(name) for name in ATTACKS}
FIRST = (4, 8, 8)
"""The shape of what crosses after the first convolution, and after the second."""


def battery(attacks):
    """A context with other attacks in place of the battery."""
    return mock.patch.object(split_audit, "BATTERY", attacks)


def audit(folder: Path, *, attacks=HARMLESS, settings=None, **more):
    """An audit by attacks of a known outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    with battery(attacks):
        return split_audit.audit_splits(
            graph(), images(folder), folder=folder, settings=settings or SplitSettings(),
            rng=InsecureSeededRandom(1), **more,
        )  # fmt: skip


if __name__ == "__main__":
    line = "{} of {}: {}\n".format
    audit(
        Path(sys.argv[1]), said=lambda *what: sys.stdout.write(line(*what)) and sys.stdout.flush()
    )
