"""The six networks that eNNclave was measured with, in their authors' shapes.

Source   the authors' training scripts (uibk-iNNference/eNNclave-experiments on GitHub)

Dropout acts in training only and is no node. Deviations: Rotten Tomatoes has the two classes of the
sentence polarity data (Pang and Lee 2005), so that its last layer is one unit with a sigmoid as in
the IMDB network; the authors had five classes of phrases from the same reviews.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cloister.errors import InputError
from cloister.splits.net_builder import NetBuilder, Network

WORDS = 20_000
"""Rows of both text models' inputs: n-grams of IMDB, words of the others."""
ROTTEN_LENGTH, AMAZON_LENGTH = 51, 500
"""Words of the longest sentence of the polarity data; of a review, as the authors cut them."""
MIT_CLASSES, FLOWERS = 67, 5


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained: Adam on the cross-entropy of the data's classes.

    data   their name, for people
    """

    data: str
    epochs: int
    batch: int = 128
    rate: float = 1e-3
    seed: int = 2020


@dataclass(frozen=True)
class Preset:
    """A network by its name.

    recipe   None: its weights stay random
    """

    build: Callable[[], Network]
    recipe: Recipe | None = None


def _mnist() -> Network:
    """MNIST: two convolutions and two dense layers."""
    net = NetBuilder("mnist", "image", (1, 28, 28), np.float32)
    x = net.relu(net.conv("image", 32, (3, 3)))
    x = net.max_pool(net.relu(net.conv(x, 64, (3, 3))), 2, 2)
    x = net.dropout(net.flatten(x), 0.4)
    x = net.dropout(net.relu(net.dense(x, 64 * 14 * 14, 128)), 0.4)
    logits = net.dense(x, 128, 10)
    return net.network(net.softmax(logits), logits=logits)


def _imdb() -> Network:
    """IMDB: two dense layers on n-grams."""
    net = NetBuilder("imdb", "tf_idf", (WORDS,), np.float32)
    x = net.relu(net.dense(net.dropout("tf_idf", 0.2), WORDS, 64))
    logits = net.dense(net.dropout(x, 0.2), 64, 1)
    return net.network(net.sigmoid(logits), logits=logits)


def _rotten() -> Network:
    """Rotten Tomatoes: four separable convolutions on words."""
    net = NetBuilder("rotten", "words", (ROTTEN_LENGTH,), np.int32)
    x = net.dropout(net.embedding("words", WORDS, 200), 0.2)
    x = net.max_pool(net.separable(net.separable(x, 64), 64), 3)
    x = net.separable(net.separable(x, 128), 128)
    logits = net.dense(net.dropout(net.average(x), 0.2), 128, 1)
    return net.network(net.sigmoid(logits), logits=logits)


def _amazon() -> Network:
    """Amazon reviews: separable convolutions on words; its output is a rating, as it is."""
    net = NetBuilder("amazon", "words", (AMAZON_LENGTH,), np.int32)
    x = net.embedding("words", WORDS, 32)
    for channels in (64, 128, 256, 256):
        x = net.max_pool(net.separable(x, channels), 2)
    x = net.relu(net.dense(net.flatten(x), 256 * 31, 600))
    x = net.relu(net.dense(net.dropout(x, 0.3), 600, 150))
    x = net.relu(net.dense(net.dropout(x, 0.3), 150, 150))
    rating = net.dense(x, 150, 1)
    return net.network(rating, logits=rating)


def _vgg(net: NetBuilder, blocks: tuple[int, ...]) -> str:
    x = "image"
    for convolutions, channels in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        for _ in range(convolutions):
            x = net.relu(net.conv(x, channels, (3, 3)))
        x = net.max_pool(x, 2, 2)
    return x


def _mit() -> Network:
    """MIT indoor scenes: VGG16 with the head 2048-2048-67."""
    net = NetBuilder("mit", "image", (3, 224, 224), np.float32)
    x = net.average(_vgg(net, (2, 2, 3, 3, 3)))
    x = net.dropout(net.relu(net.dense(x, 512, 2048)), 0.4)
    x = net.dropout(net.relu(net.dense(x, 2048, 2048)), 0.4)
    logits = net.dense(x, 2048, MIT_CLASSES)
    return net.network(net.softmax(logits), logits=logits)


def _flowers() -> Network:
    """Flowers: VGG19 with the head 800-800-600-5."""
    net = NetBuilder("flowers", "image", (3, 224, 224), np.float32)
    x = net.flatten(_vgg(net, (2, 2, 4, 4, 4)))
    for inputs, outputs in ((512 * 7 * 7, 800), (800, 800), (800, 600)):
        x = net.relu(net.dense(x, inputs, outputs))
    logits = net.dense(x, 600, FLOWERS)
    return net.network(net.softmax(logits), logits=logits)


PRESETS: Mapping[str, Preset] = {
    "mnist": Preset(_mnist, Recipe("MNIST", epochs=1)),
    "imdb": Preset(_imdb, Recipe("IMDB reviews", epochs=4)),
    "rotten": Preset(_rotten, Recipe("sentence polarity", epochs=6)),
    "amazon": Preset(_amazon),
    "mit": Preset(_mit),
    "flowers": Preset(_flowers),
}
NAMES = tuple(PRESETS)


def preset(name: str) -> Preset:
    """A preset by its name.

    Raises   InputError
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: there is none of this name; choose {', '.join(NAMES)}")
    return PRESETS[name]
