"""Private inference against plain float32 on real models and data.

The data folder (--data, $CLOISTER_DATA) holds `models`, `photos` and `cifar10`. Photos calibrate on
the first 64 inputs, CIFAR-10 on 64 training images; figures compare private with plain on the same
inputs and say nothing about the full data sets.
"""

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime as ort
import typer
from PIL import Image

import cloister as cl
from benchmarks import options
from cloister.cli.console import progress
from cloister.errors import InputError

CIFAR_MEAN, CIFAR_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BGR_MEAN = np.array([104.0, 117.0, 123.0])


def photos(data: Path, size: int, preprocess):
    rows = list(csv.DictReader((data / "photos" / "labels.csv").open()))
    images = []
    for row in rows:
        image = Image.open(data / "photos" / row["file"]).convert("RGB")
        images.append(preprocess(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))))
    labels = np.array([int(row["imagenet_label"]) for row in rows])
    return np.stack(images).transpose(0, 3, 1, 2).astype(np.float32), labels


def cifar(data: Path):
    subset = np.load(data / "cifar10" / "cifar10_subset.npz")
    calibration = _normalised(subset["train_images"][:64])
    return _normalised(subset["test_images"]), subset["test_labels"], calibration


def _normalised(images: np.ndarray) -> np.ndarray:
    scaled = (images / 255.0 - CIFAR_MEAN) / CIFAR_STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


MODELS = {
    "mobilenet_v1_0.75_224": (224, lambda x: (x - 127.5) / 127.5),
    "mobilenet_v2_1.0_224": (224, lambda x: (x - 128.0) / 128.0),
    "squeezenet_v1.0_227": (227, lambda x: x[..., ::-1] - BGR_MEAN),
    "resnet20_cifar10": None,
    "resnet56_cifar10": None,
}


def measure(
    data: options.Data = None,
    policy: options.Policy = "slalom",
    only: Annotated[str, typer.Option("--only", metavar="MODEL", help="One of them.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Inputs at most.")] = None,
) -> list[dict[str, object]]:
    """Shares of inputs, and milliseconds per input, of each model."""
    if data is None:
        raise InputError("--data or CLOISTER_DATA must name the folder with models and data")
    return [_measure(data, name, policy, limit) for name in MODELS if only in ("", name)]


def _measure(data: Path, name: str, policy: str, limit: int | None) -> dict[str, object]:
    preparation = MODELS[name]
    if preparation is None:
        inputs, labels, calibration = cifar(data)
    else:
        inputs, labels = photos(data, *preparation)
        calibration = inputs[:64]
    inputs, labels = inputs[:limit], labels[:limit]
    path = data / "models" / f"{name}.onnx"
    plain_session = ort.InferenceSession(path)
    feed = plain_session.get_inputs()[0].name
    plain = np.concatenate([plain_session.run(None, {feed: x[None]})[0] for x in inputs])
    plan = cl.policies.make(policy, cl.load(path), calibration=calibration)
    with cl.Session(plan) as session, progress(name) as update:
        result = session.run(inputs, progress=update)
    private = next(iter(result.outputs.values()))
    plain_top, private_top = (x.reshape(len(inputs), -1).argmax(1) for x in (plain, private))
    count = len(inputs)
    return {
        "model": name,
        "policy": policy,
        "inputs": count,
        "plain_top1": float(np.mean(plain_top == labels)),
        "private_top1": float(np.mean(private_top == labels)),
        "agreement": float(np.mean(plain_top == private_top)),
        "soundness_bits": result.report.soundness_bits,
        "trusted_ms": result.report.trusted_ms / count,
        "worker_ms": result.report.worker_ms / count,
        "offline_ms": result.report.offline_ms / count,
    }
