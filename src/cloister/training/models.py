"""Models to train by name: CryptoNN's, and its first layer's replacement by an encrypted one.

A model is an ordinary `torch.nn.Module` on samples (n, c, h, w). Its first layer, dense or
convolution, is the only one that computes on ciphertexts; `encrypt_first` replaces it.
"""

from collections.abc import Callable

from torch import nn

from cloister.data.encoding import Encoding
from cloister.errors import UnsupportedError
from cloister.training.layers import (
    Encrypted,
    EncryptedConv2d,
    EncryptedLinear,
    FirstLayerProducts,
    Samples,
)

Builder = Callable[[tuple[int, int, int], int], nn.Module]
HIDDEN = 128
SIGMOID_GAIN = 4.0


def lenet5(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5: 6 and 16 filters of 5x5, average pooling, 120-84-classes.

    Source     CryptoNN (arXiv:1904.07303) section 5; deviation: ReLU instead of sigmoid, which
               learns MNIST in one epoch instead of many, in the clear and encrypted alike
    Raises     UnsupportedError for samples below 12x12
    """
    return _lenet5(shape, classes, nn.ReLU)


def lenet5_sigmoid(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 with sigmoid units, as CryptoNN trains it.

    Raises     UnsupportedError for samples below 12x12
    """
    return _scaled_for_sigmoid(_lenet5(shape, classes, nn.Sigmoid))


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One hidden layer of 128 units."""
    return _mlp(shape, classes, nn.ReLU)


def mlp_sigmoid(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One hidden layer of 128 sigmoid units."""
    return _scaled_for_sigmoid(_mlp(shape, classes, nn.Sigmoid))


def logistic(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Logistic regression: one linear layer."""
    height, width, channels = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, classes))


def _lenet5(
    shape: tuple[int, int, int], classes: int, unit: Callable[[], nn.Module]
) -> nn.Sequential:
    height, width, channels = shape
    rest = [((size // 2) - 4) // 2 for size in (height, width)]
    if min(rest) < 1:
        raise UnsupportedError(f"lenet5 needs samples of at least 12x12, not {height}x{width}")
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), unit(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), unit(), nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rest[0] * rest[1], 120), unit(),
        nn.Linear(120, 84), unit(),
        nn.Linear(84, classes),
    )  # fmt: skip


def _mlp(shape: tuple[int, int, int], classes: int, unit: Callable[[], nn.Module]) -> nn.Sequential:
    height, width, channels = shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(height * width * channels, HIDDEN), unit(),
        nn.Linear(HIDDEN, classes),
    )  # fmt: skip


def _scaled_for_sigmoid(model: nn.Sequential) -> nn.Sequential:
    """Draw weights wide enough for sigmoid units.

    Source   Glorot, Bengio, AISTATS 2010: four times as wide as for tanh. After 20,000 digits of
             MNIST, with squared errors, LeNet-5 is at 81 % from these weights and at chance from
             PyTorch's own.
    """
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, gain=SIGMOID_GAIN)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


MODELS: dict[str, Builder] = {
    "lenet5": lenet5,
    "mlp": mlp,
    "logistic": logistic,
    "lenet5-sigmoid": lenet5_sigmoid,
    "mlp-sigmoid": mlp_sigmoid,
}


def encrypt_first(
    model: nn.Module,
    shape: tuple[int, int, int],
    *,
    samples: Samples,
    products: FirstLayerProducts,
    encoding: Encoding,
    weight_bits: int = 16,
) -> Encrypted:
    """Replace a model's first layer by its encrypted form, in place; the parameters stay the same.

    Raises   UnsupportedError when the first module with parameters is neither dense nor convolution
    """
    for name, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        kind = {nn.Conv2d: EncryptedConv2d, nn.Linear: EncryptedLinear}.get(type(module))
        if kind is None:
            raise UnsupportedError(
                f"model: its first layer is {type(module).__name__}; it must be Linear or Conv2d"
            )
        if not name:
            raise UnsupportedError("model: put its only layer into torch.nn.Sequential")
        layer: Encrypted = kind(
            module,
            samples=samples, products=products, encoding=encoding, shape=shape,
            weight_bits=weight_bits,
        )  # fmt: skip
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer)
        return layer
    raise UnsupportedError("model: has no layer with parameters")
