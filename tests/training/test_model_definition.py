"""Models by name and by file: what a file gives is used, and what is not used is refused."""

import pytest
import torch
from torch import nn

from cloister.errors import InputError, UnsupportedError
from cloister.training.model_definition import ModelDefinition, define
from cloister.training.models import MODELS

BUILD = (
    "from torch import nn\n"
    "def build(shape, classes):\n"
    "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 20, 3)])
def test_models_by_name(name, shape):
    defined = define(name)
    model = defined.module(shape, classes=5)
    assert model(torch.zeros(2, shape[2], *shape[:2])).shape == (2, 5)
    assert (defined.name, defined.loss, defined.optimizer) == (name, None, None)


@pytest.mark.parametrize("name", ["lenet5-sigmoid", "mlp-sigmoid"])
def test_sigmoid_models_have_sigmoid_units(name):
    units = {type(module) for module in define(name).module((28, 28, 1), classes=3)}
    assert nn.Sigmoid in units
    assert nn.ReLU not in units


def test_names_that_are_no_model():
    with pytest.raises(InputError, match="choose lenet5, mlp, logistic, lenet5-sigmoid, mlp-"):
        define("resnet")
    for name in ("lenet5", "lenet5-sigmoid"):
        with pytest.raises(UnsupportedError, match="12x12"):
            define(name).module((6, 6, 1), classes=2)


def test_a_file_gives_everything(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(BUILD + (
        "import torch\n"
        "RATE: float = 0.1\n"
        "_unused = 1\n"
        "loss = nn.CrossEntropyLoss(label_smoothing=0.1)\n"
        "def optimizer(parameters):\n    return torch.optim.RMSprop(parameters, lr=RATE)\n"
        "def scheduler(optimizer):\n"
        "    return torch.optim.lr_scheduler.StepLR(optimizer, 1)\n"
        "class_weights = 'balanced'\n"
    ))  # fmt: skip
    defined = define(str(path))
    assert isinstance(defined.module((4, 4, 1), classes=2), nn.Sequential)
    scores = torch.zeros(3, 2)
    torch.testing.assert_close(defined.loss(scores, torch.tensor([0, 1, 1])).item(), 0.6931472)
    made = defined.optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.RMSprop)
    assert isinstance(defined.scheduler(made), torch.optim.lr_scheduler.StepLR)
    assert defined.class_weights == "balanced"
    before = defined.digest
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert define(str(path)).digest != before


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1", "defines no function build"),
    ("def build(", "SyntaxError"),
    ("def build(shape): return 3", r"build\(shape, classes\) fails"),
    ("def build(s, c): raise SystemError('no')", "SystemError: no"),
    ("def build(s, c): return 3", "not a torch.nn.Module"),
    (BUILD + "def optimiser(p): return None", "nothing uses .did you mean optimizer"),
    (BUILD + "learning_rate = 0.1", "nothing uses .--learning-rate of .cloister"),
    (BUILD + "early_stopping = 3", "nothing uses .--early-stopping of .cloister train. decides it"),
    (BUILD + "class Other(nn.Module): pass", "defines Other, which nothing uses"),
    (BUILD + "a, b = 1, 2\n_c = a", "defines b, which nothing uses"),
    (BUILD + "width: int = 3", "defines width, which nothing uses"),
    (BUILD + "loss = 'hinge'", "net.py: loss 'hinge': choose cross-entropy, binary"),
    (BUILD + "optimizer = 'sgd'", "optimizer must be a function"),
    (BUILD + "class_weights = {'ill': 3, 'well': 1}", "classes are numbered in a secret order"),
    (BUILD + "class_weights = [3, 1]", "classes are numbered in a secret order"),
])  # fmt: skip
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        define(str(path)).module((4, 4, 1), classes=2)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such Python file"):
        define(str(tmp_path / "net.py"))


def test_names_that_the_file_uses_are_its_own(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(
        "from pathlib import Path\nimport os.path as places\nWIDTH = 3\n"
        "class Layer(__import__('torch').nn.Module):\n    depth = WIDTH\n"
        "def build(shape, classes): return Layer()\n"
        "def main(): build((1, 1, 1), 2)\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    assert define(str(path)).module((4, 4, 1), classes=2).depth == 3


def test_a_definition_without_a_file():
    defined = ModelDefinition(lambda shape, classes: nn.Flatten(), loss="mse")
    assert isinstance(defined.module((2, 2, 1), classes=2), nn.Flatten)
    with pytest.raises(InputError, match="scheduler must be a function"):
        ModelDefinition(lambda shape, classes: nn.Flatten(), scheduler=3)


@pytest.mark.parametrize("name", ["loss", "optimizer", "scheduler", "class_weights"])
def test_a_function_of_the_file_that_fails_is_named(tmp_path, name):
    path = tmp_path / "net.py"
    path.write_text(BUILD + f"def {name}(*given): return given[0].nothing\n")
    made = getattr(define(str(path)), name)
    assert made.__qualname__ == name
    with pytest.raises(InputError, match=rf"net\.py: {name} fails.*has no attribute 'nothing'"):
        made(1, 2)
