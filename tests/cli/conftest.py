from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import nets
from cloister.cli.main import main


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str


@pytest.fixture
def cloister(capsys) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Ran:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(cloister) -> Callable[..., str]:
    """Run a command line that must fail, and return its one-line message."""

    def run(*arguments: object, code: int = 2) -> str:
        ran = cloister(*arguments)
        assert ran.code == code, ran
        assert ran.err.startswith("error: "), ran.err
        assert ran.err.count("\n") == 1, ran.err
        assert ran.out == ""
        return ran.err.strip()

    return run


def tiny() -> onnx.ModelProto:
    """Convolution, relu, max pooling, dense."""
    net = nets.Net(11)
    x = net.op("Relu", net.conv(net.input("image", 3, 8, 6), 3, 4, pads=[1, 1, 1, 1]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.gemm(net.op("Flatten", x), 4 * 4 * 3, 5))


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(tiny(), path)
    return path


@pytest.fixture(scope="session")
def other_model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "other.onnx"
    model = tiny()
    weights = model.graph.initializer[0]
    array = 2 * onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(3)
    paths = [folder / name for name in ("a.png", "b.png", "c.jpg")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (16, 12, 3), dtype=np.uint8)).save(path)
    return paths
