"""The models and images of docs/audits: LeNet-5 on MNIST, a face network on ORL, ResNet-20.

The data folder (--data, $CLOISTER_DATA) holds `mnist`, `faces`, `cifar10` and `models`. Training
runs on one thread from fixed seeds: the same processor and version of PyTorch give the same bits,
others nearly the same weights. A report names the model that it attacked by its digest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks import options
from cloister.base import files
from cloister.cli.console import progress
from cloister.errors import InputError
from cloister.graph.onnx.export import model_bytes
from cloister.graph.onnx.load import load
from cloister.graph.passes.normalise import prepare
from cloister.plan.split_report import model_sha256
from cloister.splits import preset_training
from cloister.splits.net_builder import NetBuilder, Network
from cloister.splits.preset_data import PresetData, PresetSamples, read_data
from cloister.splits.presets import Recipe

TEST_FACES = 2
"""Pictures of each person, of ten, that the face network is tested with."""
FACES = 10


@dataclass(frozen=True, eq=False)
class AuditModel:
    """One model with the images that are attacked and those that the attacks learn from.

    images     public ones, then attacked ones: (n, h, w, c) or (n, h, w), uint8
    accuracy   on held-out images; None: not trained here
    """

    content: bytes
    images: np.ndarray
    accuracy: float | None = None


def lenet() -> Network:
    """LeNet-5 with ReLU and maxima (LeCun et al. 1998), and a second convolution that keeps 14x14."""
    net = NetBuilder("lenet", "image", (1, 28, 28), np.float32)
    x = net.max_pool(net.relu(net.conv("image", 6, (5, 5))), 2, 2)
    x = net.max_pool(net.relu(net.conv(x, 16, (5, 5))), 2, 2)
    x = net.relu(net.dense(net.flatten(x), 16 * 7 * 7, 120))
    logits = net.dense(net.relu(net.dense(x, 120, 84)), 84, 10)
    return net.network(logits, logits=logits)


def faces() -> Network:
    """Which of 40 people a picture of 112x92 shows: five convolutions and two dense layers."""
    net = NetBuilder("faces", "image", (1, 112, 92), np.float32)
    x = "image"
    for channels in (8, 16, 32, 32):
        x = net.max_pool(net.relu(net.conv(x, channels, (3, 3))), 2, 2)
    x = net.dropout(net.flatten(net.relu(net.conv(x, 32, (3, 3)))), 0.5)
    x = net.relu(net.dense(x, 32 * 7 * 5, 128))
    logits = net.dense(net.dropout(x, 0.5), 128, 40)
    return net.network(logits, logits=logits)
