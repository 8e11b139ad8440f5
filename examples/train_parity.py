"""Trains the network of `cloister demo split`, and writes src/cloister/examples/parity.onnx.

    python examples/train_parity.py [OUTPUT.onnx]

It tells odd digits from even ones, and ends in two neurons before its answer: what crosses there
is little more than the answer. Data, held-out images and preprocessing are those of
examples/train_digits.py.

Fixed seed, one thread: the same PyTorch version on the same kind of CPU gives the same file.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from cloister.examples.digits_demo import all_digits
from cloister.graph.onnx.export import model_bytes
from cloister.graph.passes.normalise import prepare
from cloister.splits import preset_training
from cloister.splits.net_builder import NetBuilder, Network
from cloister.splits.preset_data import PresetData, PresetSamples
from cloister.splits.presets import Recipe

TARGET = Path(__file__).parents[1] / "src" / "cloister" / "examples" / "parity.onnx"
RECIPE = Recipe("scikit-learn's digits", epochs=100, batch=64, rate=3e-3, seed=2)


def parity() -> Network:
    """Two convolutions and three dense layers: about 9,000 weights."""
    net = NetBuilder("parity", "image", (1, 8, 8), np.float32)
    x = net.max_pool(net.relu(net.conv("image", 16, (3, 3))), 2, 2)
    x = net.max_pool(net.relu(net.conv(x, 32, (3, 3))), 2, 2)
    x = net.relu(net.dense(net.dropout(net.flatten(x), 0.3), 32 * 2 * 2, 32))
    logits = net.dense(net.relu(net.dense(x, 32, 2)), 2, 2)
    return net.network(logits, logits=logits)


def main() -> None:
    """Train, measure on the held-out images, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?", type=Path, default=TARGET)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = all_digits()
    train, test = (
        PresetSamples(digits.images[which], digits.labels[which] % 2)
        for which in (~digits.held_out, digits.held_out)
    )
    network = parity()
    graph = preset_training.train(network, PresetData(train, test), RECIPE, lambda *_: None)
    accuracy = preset_training.accuracy(network, graph, test, lambda *_: None)
    print(f"held out: {accuracy:.1%} of {len(test)} right")
    output.write_bytes(model_bytes(prepare(graph)))
    print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
