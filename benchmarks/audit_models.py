"""Trains the models of docs/audits: LeNet-5 on MNIST and a face network on ORL.

The data folder (--data, $CLOISTER_DATA) holds `mnist` and `faces`. Training runs on one thread from
fixed seeds: the same processor and version of PyTorch give the same file, others nearly the same
weights. A report names the model that was attacked by its digest.
"""

import hashlib
import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import options
from cloister.base import files
from cloister.cli.console import progress
from cloister.errors import InputError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.load import load
from cloister.graph.passes.normalise import prepare
from cloister.plan.split_report import model_sha256
from cloister.splits import preset_training
from cloister.splits.net_builder import NetBuilder, Network
from cloister.splits.preset_data import PresetData, PresetSamples, read_mnist
from cloister.splits.presets import Recipe

FACES_OF_EACH, TRAINED_FACES = 10, 5
"""Pictures of each person, and those of them that the face network is trained on."""

Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write the models.")]
Quick = Annotated[bool, typer.Option("--quick", help="One epoch, to see that it runs.")]


def lenet() -> Network:
    """LeNet-5 with ReLU and maxima; its second convolution keeps the size."""
    net = NetBuilder("lenet", "image", (1, 28, 28), np.float32)
    x = net.max_pool(net.relu(net.conv("image", 6, (5, 5))), 2, 2)
    x = net.max_pool(net.relu(net.conv(x, 16, (5, 5))), 2, 2)
    x = net.relu(net.dense(net.dropout(net.flatten(x), 0.3), 16 * 7 * 7, 120))
    logits = net.dense(net.relu(net.dense(x, 120, 84)), 84, 10)
    return net.network(logits, logits=logits)


def faces() -> Network:
    """Which of 40 people a picture of 56x46 shows: four convolutions and two dense layers."""
    net = NetBuilder("faces", "image", (1, 56, 46), np.float32)
    x = "image"
    for channels in (16, 32, 32):
        x = net.max_pool(net.relu(net.conv(x, channels, (3, 3))), 2, 2)
    x = net.dropout(net.flatten(net.relu(net.conv(x, 32, (3, 3)))), 0.5)
    x = net.relu(net.dense(x, 32 * 7 * 5, 128))
    logits = net.dense(net.dropout(x, 0.5), 128, 40)
    return net.network(logits, logits=logits)


def measure(
    folder: Folder = Path("build/audit-models"),
    data: options.Data = None,
    quick: Quick = False,
) -> list[dict[str, object]]:
    """Accuracy on held-out images, and digests, of each model."""
    if data is None:
        raise InputError("--data or CLOISTER_DATA must name the folder of all data")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    folder.mkdir(parents=True, exist_ok=True)

    def recipe(name: str, *, epochs: int, batch: int) -> Recipe:
        return Recipe(name, 1 if quick else epochs, batch)

    pictures, people = _faces(data)
    files.replace(folder / "faces.npz", _images(people), private=False)
    return [
        _train(folder, lenet(), read_mnist(data), recipe("MNIST", epochs=10, batch=128)),
        _train(folder, faces(), pictures, recipe("ORL faces", epochs=80, batch=20)),
    ]


def _train(folder: Path, network: Network, data: PresetData, recipe: Recipe) -> dict[str, object]:
    name = network.graph.name
    with progress(name) as update:
        graph = preset_training.train(
            network, data, recipe, lambda _, done, total: update(done, total)
        )
    accuracy = preset_training.accuracy(network, graph, data.test, lambda *_: None)
    path = folder / f"{name}.onnx"
    content = model_bytes(prepare(graph))
    files.replace(path, content, private=False)
    return {
        "model": name,
        "trained on": f"{len(data.train):,} images of {recipe.data}",
        "accuracy": accuracy,
        "held out": len(data.test),
        "weights": _weights(graph),
        "sha256 of the file": hashlib.sha256(content).hexdigest(),
        "sha256 of the graph": model_sha256(load(path)),
    }


def _weights(graph: Graph) -> int:
    return sum(a.size for a in graph.constants.values() if a.dtype == np.float32)


def _faces(data: Path) -> tuple[PresetData, dict[str, np.ndarray]]:
    """Both halves as a network takes them, and as pixels; means of 2x2 pixels of the originals."""
    with np.load(data / "faces" / "orl_faces.npz") as found:
        images, labels = found["images"], found["labels"].astype(np.int64)
    n, height, width = images.shape
    means = images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))
    pixels = np.rint(means).astype(np.uint8)
    held_out = np.arange(len(labels)) % FACES_OF_EACH >= TRAINED_FACES
    x = pixels[:, None] / np.float32(255)
    parts = [PresetSamples(x[which], labels[which]) for which in (~held_out, held_out)]
    return PresetData(*parts), {"train_images": pixels[~held_out], "test_images": pixels[held_out]}


def _images(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
