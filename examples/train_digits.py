"""Trains the network of `cloister demo inference`, and writes src/cloister/examples/digits.onnx.

Also writes ten held-out digits as pictures, examples/digits/0.png to 9.png, for the command line.

    python examples/train_digits.py [OUTPUT.onnx]

Data: scikit-learn's copy of the UCI handwritten digits, 1,797 grey images of 8 x 8 pixels with
values 0 to 16. Every fifth image (indices 0, 5, 10, ...) is held out: 360 test images that training
never sees. The same people wrote both parts, so the accuracy is that of known hands.

Fixed seed, one thread, deterministic algorithms: the same PyTorch version on the same kind of CPU
gives the same file. Preprocessing: pixel / 16, shape (n, 1, 8, 8), float32.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

TARGET = Path(__file__).parents[1] / "src" / "cloister" / "examples" / "digits.onnx"
PICTURES = Path(__file__).parent / "digits"
HELD_OUT_EVERY = 5
EPOCHS = 60
BATCH = 64
OPSET = 18


class DigitNet(nn.Sequential):
    """Two convolutions with batch normalisation, a pool, a dense layer: about 10,000 weights."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to one pixel in both directions, zeros coming in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    return torch.stack(
        [padded[i, :, y : y + 8, x : x + 8] for i, (y, x) in enumerate(offsets.tolist())]
    )


def train(images: Tensor, labels: Tensor, generator: torch.Generator) -> DigitNet:
    """AdamW with a one-cycle learning rate on shifted images."""
    model = DigitNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-3)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(images) // BATCH * BATCH].split(BATCH):
            logits = model(shifted(images[chosen], generator))
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: DigitNet, path: Path) -> None:
    """Write ONNX with a dynamic batch and nothing in it that describes this machine."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    proto = program.model_proto
    proto.graph.name = "digits"
    proto.doc_string = "Handwritten digits, 8 x 8; made by examples/train_digits.py"
    for i, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type.lower()}_{i}"
    parts = (proto, proto.graph, *proto.graph.node, *proto.graph.value_info)
    for part in (*parts, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        part.ClearField("metadata_props")
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def write_pictures(images: Tensor, labels: Tensor) -> None:
    """The first held-out example of each digit as an 8 x 8 grey PNG."""
    PICTURES.mkdir(exist_ok=True)
    for digit in range(10):
        image = images[labels == digit][0, 0].mul(255).round().numpy().astype(np.uint8)
        Image.fromarray(image).save(PICTURES / f"{digit}.png", optimize=True)


def main() -> None:
    """Train, measure on the held-out images, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", nargs="?", type=Path, default=TARGET)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generator = torch.Generator().manual_seed(1797)
    torch.manual_seed(1797)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    held_out = torch.arange(len(images)) % HELD_OUT_EVERY == 0
    model = train(images[~held_out], labels[~held_out], generator)
    with torch.no_grad():
        right = model(images[held_out]).argmax(1) == labels[held_out]
    print(f"held out: {int(right.sum())} of {len(right)} right")
    export(model, output)
    write_pictures(images[held_out], labels[held_out])
    print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
