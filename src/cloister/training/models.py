"""Models to train: two of the papers', and any that a user's Python file builds.

A model is an ordinary `torch.nn.Module` on samples (n, c, h, w). Its first layer, dense or
convolution, is the only one that computes on ciphertexts; `encrypt_first` replaces it.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from torch import nn

from cloister.base.reading import parsing
from cloister.data.encoding import Encoding
from cloister.errors import InputError, UnsupportedError
from cloister.training.layers import (
    Encrypted,
    EncryptedConv2d,
    EncryptedLinear,
    FirstLayerProducts,
    Samples,
)

Builder = Callable[[tuple[int, int, int], int], nn.Module]
HIDDEN = 128


def lenet5(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5: 6 and 16 filters of 5x5, average pooling, 120-84-classes.

    Source     CryptoNN (arXiv:1904.07303) section 5; deviation: ReLU instead of sigmoid, which
               learns MNIST in one epoch instead of many, in the clear and encrypted alike
    Raises     UnsupportedError for samples below 12x12
    """
    height, width, channels = shape
    rest = [((size // 2) - 4) // 2 for size in (height, width)]
    if min(rest) < 1:
        raise UnsupportedError(f"lenet5 needs samples of at least 12x12, not {height}x{width}")
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * rest[0] * rest[1], 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, classes),
    )  # fmt: skip


def mlp(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One hidden layer of 128 units."""
    height, width, channels = shape
    return nn.Sequential(
        nn.Flatten(), nn.Linear(height * width * channels, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )  # fmt: skip


MODELS: dict[str, Builder] = {"lenet5": lenet5, "mlp": mlp}


def build(name: str, shape: tuple[int, int, int], *, classes: int) -> nn.Module:
    """A model by name, or by `FILE.py` whose `build(shape, classes)` makes it.

    The file is the user's own program and runs with all his rights.

    Raises   InputError naming the file
    """
    builder = _from_script(Path(name)) if name.endswith(".py") else MODELS.get(name)
    if builder is None:
        raise InputError(f"model {name!r}: choose {', '.join(MODELS)} or give FILE.py")
    with parsing(f"{name}: build(shape, classes) fails"):
        model = builder(shape, classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name}: build() returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _from_script(path: Path) -> Builder:
    spec = importlib.util.spec_from_file_location(f"cloister_model_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    with parsing(f"{path}: fails when it is run"):  # the user's program may fail in any way
        spec.loader.exec_module(module)
    builder: Builder | None = getattr(module, "build", None)
    if not callable(builder):
        raise InputError(f"{path}: defines no function build(shape, classes)")
    return builder


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
