"""Private inference against plain float32 on real models and data.

    python benchmarks/accuracy.py [--data FOLDER] [--policy slalom] [--only MODEL] [--json]

FOLDER (default: $CLOISTER_DATA) holds `models`, `photos` and `cifar10`. Photos calibrate on
the first 64 inputs, CIFAR-10 on 64 training images; figures compare private with plain on the same
inputs and say nothing about the full data sets.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

import cloister as cl

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


def measure(data: Path, name: str, policy: str) -> dict[str, object]:
    recipe = MODELS[name]
    if recipe is None:
        inputs, labels, calibration = cifar(data)
    else:
        inputs, labels = photos(data, *recipe)
        calibration = inputs[:64]
    path = data / "models" / f"{name}.onnx"
    plain_session = ort.InferenceSession(path)
    feed = plain_session.get_inputs()[0].name
    plain = np.concatenate([plain_session.run(None, {feed: x[None]})[0] for x in inputs])
    plan = cl.policies.make(policy, cl.load(path), calibration=calibration)
    with cl.Session(plan) as session:
        result = session.run(inputs, progress=lambda i, n: _progress(name, i, n))
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


def _progress(name: str, done: int, total: int) -> None:
    print(f"\r{name} {done}/{total} ", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLOISTER_DATA"))
    parser.add_argument("--policy", default="slalom")
    parser.add_argument("--only", choices=sorted(MODELS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data or CLOISTER_DATA must name the folder with models and data")
    rows = [
        measure(Path(options.data), name, options.policy)
        for name in ([options.only] if options.only else MODELS)
    ]
    print(file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            f"{row['model']:24} plain {row['plain_top1']:.1%}  private {row['private_top1']:.1%}  "
            f"agreement {row['agreement']:.1%}  trusted {row['trusted_ms']:.1f} ms"
        )


if __name__ == "__main__":
    main()
