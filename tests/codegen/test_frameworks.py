"""Models of PyTorch and Keras through the compiler, against the framework's own results."""

import numpy as np
import pytest

from cloister.errors import TracingWarning
from cloister.graph.onnx.frontends import from_keras, from_torch
from codegen.modules import Native, compiled

BUILD = "native-x86-64-v3"


def run(graph, *arrays):
    return Native(compiled(graph, builds=(BUILD,)), BUILD).run(*arrays)[0]


def test_a_convolutional_network_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Hardswish(), nn.Conv2d(12, 20, 1), nn.SiLU(),
        nn.MaxPool2d(2), nn.Conv2d(20, 8, (1, 3), dilation=(1, 2), padding=(0, 2)), nn.LeakyReLU(),
        nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(8 * 3 * 2, 7), nn.Softmax(1),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 21, 15)
    found = run(from_torch(net, x), x[:1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x)[:1].numpy(), rtol=1e-4, atol=1e-6)


def test_a_transformer_of_pytorch():
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(11, 8)
            self.norm = torch.nn.LayerNorm(8)
            self.mix = torch.nn.Linear(8, 24)
            self.up, self.down = torch.nn.Linear(8, 20), torch.nn.Linear(20, 8)

        def forward(self, tokens):
            x = self.table(tokens)
            q, k, v = self.mix(self.norm(x)).reshape(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1)
            x = x + (weights @ v).transpose(1, 2).reshape(-1, 5, 8)
            return (x + self.down(torch.nn.functional.gelu(self.up(x)))).mean(1)

    net = Block().eval()
    tokens = torch.tensor([[1, 10, 0, 3, 3], [2, 2, 2, 2, 2]])
    with pytest.warns(TracingWarning, match="Block"):  # it takes a tensor apart
        graph = from_torch(net, tokens)
    found = run(graph, tokens[:1].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, net(tokens)[:1].numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_text_network_of_keras(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(20, 6),
            layers.SeparableConv1D(9, 3, activation="relu"),
            layers.MaxPooling1D(2),
            layers.SeparableConv1D(5, 2, activation="tanh"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, activation="sigmoid"),
        ]
    )
    path = tmp_path / f"net{suffix}"
    net.save(path)
    tokens = np.random.default_rng(0).integers(0, 20, (2, 12)).astype(np.int32)
    found = run(from_keras(path), tokens[:1])
    expected = keras.ops.convert_to_numpy(net(tokens))[:1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
